"""Units of systemd that `slipway service install --user` writes."""

from __future__ import annotations

import configparser
import http.server
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from free_ports import free_port
from slipway_command import DIGITS

from flows import ui_address
from flows.command import service_command
from flows.command.cli import main

NAMES = [
    "slipway-prefect.service",
    "slipway-recover.service",
    "slipway-recover.timer",
    "slipway-worker.service",
]


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where they are written; the home has a space and a percent sign."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "my 100% home"))
    return tmp_path / "config" / "systemd" / "user"


def _external(folder: Path) -> Path:
    config = yaml.safe_load((DIGITS / "pipeline.yaml").read_text())
    config["deployment"] = {"target": "external", "host": "127.0.0.1", "grpc_port": 9500, "rest_port": 9501}
    folder.mkdir()
    (folder / "pipeline.yaml").write_text(yaml.safe_dump({**config, "server": {}}))
    return folder


def _section(file: Path, section: str) -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(file)
    return parser[section]


def test_it_writes_them_and_says_how_to_start_them(units: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recovery by its timer alone."""
    assert main(["service", "install", "--user"]) == 0
    assert sorted(file.name for file in units.iterdir()) == NAMES
    said = capsys.readouterr().out
    assert (
        "systemctl --user enable --now slipway-prefect.service slipway-worker.service slipway-recover.timer"
        in said
    )
    assert "loginctl enable-linger" in said


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_takes_them(units: Path, tmp_path: Path) -> None:
    """Programs, keys and escapes."""
    assert main(["service", "install", str(_external(tmp_path / "served")), "--user"]) == 0
    files = sorted(map(str, units.iterdir()))
    assert len(files) == 5
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", *files], capture_output=True, text=True,
        timeout=60,
        env={"XDG_RUNTIME_DIR": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr
    assert "slipway" not in checked.stderr


def test_a_unit_has_what_a_login_has(units: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Home, proxy and the address of Prefect's server; of the password only the file."""
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    password = ui_address.auth_string()
    assert main(["service", "install", "--user", "--port", "4300", "--pool", "gpu"]) == 0
    text = (units / "slipway-worker.service").read_text()
    assert f'Environment="SLIPWAY_HOME={tmp_path}/my 100%% home"' in text
    assert 'Environment="PREFECT_API_URL=http://127.0.0.1:4300/api"' in text
    assert 'Environment="https_proxy=http://proxy:3128"' in text
    assert password not in text
    assert "--pool gpu" in text
    assert _section(units / "slipway-worker.service", "Service")["KillMode"] == "process"


def test_the_worker_waits_for_the_server_and_then_reads_the_password(units: Path) -> None:
    """The shell's part of its line, with `printf` for the worker: the first start makes the password."""
    port = free_port()
    assert main(["service", "install", "--user", "--port", str(port)]) == 0
    line = _section(units / "slipway-worker.service", "Service")["ExecStart"]
    shell, option, script = shlex.split(line.replace("$$", "$").replace("%%", "%"))
    shown = script.partition("exec ")[0].strip() + '; printf %s "$PREFECT_API_AUTH_STRING"'
    process = subprocess.Popen([shell, option, shown], stdout=subprocess.PIPE, text=True)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    password = ui_address.auth_string()
    with _health(port):
        found, _ = process.communicate(timeout=30)
    assert found == password


@contextmanager
def _health(port: int) -> Iterator[None]:
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/api/health" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


def test_an_external_server_is_kept_by_systemd(units: Path, tmp_path: Path) -> None:
    """With the ports, name and base path of the pipeline; a server that runs start is none of them."""
    assert main(["service", "install", str(_external(tmp_path / "served")), "--user"]) == 0
    service = _section(units / "slipway-serving-digits.service", "Service")
    program, *flags = shlex.split(service["ExecStart"].replace("%%", "%"))
    assert Path(program).name == "model_server"
    assert Path(program).is_file()
    assert flags == [
        "--port=9500", "--rest_api_port=9501", "--model_name=digits",
        f"--model_base_path={tmp_path}/my 100% home/models/digits",
    ]  # fmt: skip
    assert service["Restart"] == "always"


def test_what_cannot_be_is_refused(units: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Units of the system, and of servers that runs start."""
    assert main(["service", "install"]) == 2
    assert "slipway service install --user" in capsys.readouterr().err
    assert main(["service", "install", str(DIGITS), "--user"]) == 2
    assert "target: external" in capsys.readouterr().err
    assert not units.exists()
    assert service_command.folder_of_units() == units
