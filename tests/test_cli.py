"""The command `slipway`: what it takes, what it prints, and its exit codes. No run is started here."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from free_ports import free_port
from slipway_command import DIGITS, REPOSITORY, Slipway
from waiting import eventually

from flows.command.cli import main
from tasks.state import server_records
from tasks.state.server_records import ServerRecord

FACTORY = """\
name: small
data: {files: ["*.tfrecord"], features: {x: int64}, label: {y: int64}}
model: {factory: "model.py:build_estimator"}
"""


def _pipeline(folder: Path, text: str = FACTORY, **files: str) -> str:
    for name, content in {"pipeline.yaml": text, **files}.items():
        (folder / name).write_text(content)
    return str(folder)


class TestCheck:
    """`slipway check PIPELINE`."""

    def test_a_valid_pipeline(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Exit code 0, and one line that names the file and the pipeline."""
        assert main(["check", str(DIGITS)]) == 0
        out, err = capsys.readouterr()
        assert " ".join(out.split()) == f"{DIGITS}/pipeline.yaml: pipeline digits is valid"
        assert err == ""

    def test_a_wrong_value(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Exit code 2; on stderr the class of the error, and where and what is wrong; nothing on stdout."""
        folder = _pipeline(
            tmp_path, FACTORY + "training: {max_steps: 0}\n", **{"model.py": "build_estimator = 1"}
        )
        assert main(["check", folder]) == 2
        out, err = capsys.readouterr()
        place, problem = f"{folder}/pipeline.yaml:4:12", "input should be greater than 0"
        assert err == f"ConfigError: {place}: 'training.max_steps' = 0: {problem}\n"
        assert out == ""

    def test_an_override_is_checked_too(self, capsys: pytest.CaptureFixture[str]) -> None:
        """`--set` may be given again and again, and takes several; the wrong one is named."""
        several = ["--set", "training.max_steps=5", "training.seed=2", "--set", "export.keep_versions=3"]
        assert main(["check", str(DIGITS), *several]) == 0
        assert main(["check", str(DIGITS), *several, "--set", "export.keep_versions=1"]) == 2
        assert "--set export.keep_versions: 'export.keep_versions' = 1" in capsys.readouterr().err

    def test_a_hint_is_printed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """What to do next stands on a line of its own."""
        assert main(["check", str(tmp_path / "nowhere")]) == 2
        assert "\n  hint: name a folder that holds pipeline.yaml" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("code", "said"),
        [
            (None, "no such file: {folder}/model.py\n  hint: the path is relative to the YAML"),
            (
                "def build_estimater(): ...",
                "defines no 'build_estimator'\n  hint: did you mean 'build_estimater'?",
            ),
            ("def f(): ...\nx = 1", "defines no 'build_estimator'\n  hint: it defines: f, x"),
            ("", "defines no 'build_estimator'\n  hint: it defines: nothing"),
            ("x = 1\ndef build_estimator(:\n", "{folder}/model.py:2 is not valid Python: invalid syntax"),
            ("x = '\0'", "{folder}/model.py:1 is not valid Python: source code"),
        ],
        ids=["no file", "near name", "other names", "empty", "syntax", "null byte"],
    )
    def test_a_callable_that_is_not_there(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: str | None, said: str
    ) -> None:
        """The message has the YAML, the key, the file, and what the file does define."""
        folder = _pipeline(tmp_path, **({} if code is None else {"model.py": code}))
        assert main(["check", folder]) == 2
        err = capsys.readouterr().err
        assert f"{folder}/pipeline.yaml: 'model.factory' = 'model.py:build_estimator': " in err
        assert said.format(folder=folder) in err

    @pytest.mark.parametrize(
        "code",
        ["def build_estimator(): ...", "class build_estimator: ...", "build_estimator = print",
         "from m import build_estimator", "from m import f as build_estimator"],
    )  # fmt: skip
    def test_a_callable_may_be_defined_in_any_way(self, tmp_path: Path, code: str) -> None:
        """The file is read, not run: nothing that it imports need be there."""
        assert main(["check", _pipeline(tmp_path, **{"model.py": f"import not_there\n{code}\n"})]) == 0

    def test_a_missing_ingest_is_named_by_its_key(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """`data.ingest` is looked up as `model.factory` is."""
        text = (DIGITS / "pipeline.yaml").read_text()
        assert main(["check", _pipeline(tmp_path, text)]) == 2
        assert "'data.ingest' = 'ingest.py:write_digits': no such file" in capsys.readouterr().err

    def test_a_path_with_brackets_is_printed_as_it_is(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Brackets in a path are not taken for colours."""
        folder = tmp_path / "a[b]" / "[red]"
        folder.mkdir(parents=True)
        assert main(["check", _pipeline(folder, **{"model.py": "build_estimator = 1"})]) == 0
        assert "a[b]/[red]/pipeline.yaml" in capsys.readouterr().out.replace("\n", "")

    def test_it_imports_neither_tensorflow_nor_prefect_and_writes_nothing(self, home: Path) -> None:
        """A check in a fresh process loads only what reads configuration, and leaves no home behind."""
        program = (
            "import sys; from flows.command.cli import main; code = main(['check', sys.argv[1]]);"
            "heavy = {'tensorflow', 'prefect', 'docker', 'grpc', 'numpy'} & set(sys.modules);"
            "print('HEAVY', sorted(heavy)); sys.exit(code)"
        )
        command = [sys.executable, "-c", program, str(DIGITS)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "HEAVY []" in done.stdout
        assert not home.exists()


class TestSchema:
    """`slipway schema`, the JSON Schema for editors."""

    @pytest.fixture
    def schema(self, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
        """What the command prints."""
        assert main(["schema"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    def test_it_accepts_the_demo_and_refuses_a_wrong_key(self, schema: dict[str, Any]) -> None:
        """It is valid itself; the digits' pipeline is valid by it, and an unknown or bad value is not."""
        from jsonschema import Draft202012Validator  # Prefect depends on it

        Draft202012Validator.check_schema(schema)
        validator = Draft202012Validator(schema)
        digits = yaml.safe_load((DIGITS / "pipeline.yaml").read_text())
        assert list(validator.iter_errors(digits)) == []
        for slice_, wrong in (
            ("training", {"max_stepz": 1}),
            ("training", {"max_steps": 0}),
            ("server", {"x": 1}),
        ):
            assert list(validator.iter_errors({**digits, slice_: wrong}))
        data = {**digits["data"], "features": {"pixels": "float31"}}
        assert list(validator.iter_errors({**digits, "data": data}))

    def test_every_key_says_what_it_means(self, schema: dict[str, Any]) -> None:
        """An editor shows a description for each key of each slice that a pipeline is made of."""
        slices = [definition for name, definition in schema["$defs"].items() if name.endswith("Config")]
        assert len(slices) > 5
        keys = [
            (key, value)
            for part in slices
            for key, value in part["properties"].items()
            if "$ref" not in value
        ]
        assert [key for key, value in keys if not value.get("description")] == []


class TestUsage:
    """The command line itself."""

    @pytest.mark.parametrize(
        "arguments",
        [
            ["nope"], ["check"], ["check", "a", "b"], ["check", str(DIGITS), "--nope"], ["run"],
            ["check", str(DIGITS), "--set"], ["ui", "--port", "x"], ["ui", "--port", "70000"],
            ["ui", "--port", "0"],
            ["ask", str(DIGITS), "--count", "0"],
        ],
        ids=" ".join,
    )  # fmt: skip
    def test_bad_usage_is_exit_code_2(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str], home: Path
    ) -> None:
        """Something is said about it, no traceback, and nothing is written."""
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert "Error" in out + err
        assert "Traceback" not in out + err
        assert not home.exists()

    def test_alone_it_shows_the_commands(self, capsys: pytest.CaptureFixture[str]) -> None:
        """`slipway` lists every command with a line, and what the exit codes mean."""
        assert main([]) == 0
        shown = capsys.readouterr().out
        for command in ("run", "retrain", "check", "schema", "status", "stop", "ask", "ui"):
            assert re.search(rf"^\W*{command}  +[A-Z]", shown, re.MULTILINE), command
        assert "Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 3 rejected" in " ".join(
            shown.split()
        )

    @pytest.mark.parametrize("command", ["run", "retrain"])
    def test_the_help_of_a_flow_names_its_options(
        self, command: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """`slipway run --help` tells of PIPELINE, --set, --json and --verbose."""
        assert main([command, "--help"]) == 0
        shown = capsys.readouterr().out
        for option in ("PIPELINE", "--set", "key.path=value", "--json", "--verbose"):
            assert option in shown

    def test_the_version_is_that_of_the_project(self, capsys: pytest.CaptureFixture[str]) -> None:
        """`slipway --version` prints what pyproject.toml says."""
        assert main(["--version"]) == 0
        said = re.search(r'^version = "(.*)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
        assert said is not None
        assert capsys.readouterr().out.strip() == said[1]

    @pytest.mark.parametrize("override", ["training.max_steps", "a=["])
    def test_an_unreadable_override_is_refused(
        self, override: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It is told by its own text."""
        assert main(["check", str(DIGITS), "--set", override]) == 2
        assert f"--set '{override}': " in capsys.readouterr().err


class TestBeforeAnyRun:
    """The commands about a server, when none was ever started."""

    def test_status(self, capsys: pytest.CaptureFixture[str], home: Path) -> None:
        """It says that nothing serves, no version is there, and no run has ended; and makes nothing."""
        assert main(["status", str(DIGITS)]) == 0
        shown = capsys.readouterr().out
        assert re.search("^serving +nothing: no server was started$", shown, re.MULTILINE)
        assert re.search("^versions +none  in ", shown, re.MULTILINE)
        assert re.search("^last verdict +none: no run has ended$", shown, re.MULTILINE)
        assert not home.exists()

    def test_stop(self, capsys: pytest.CaptureFixture[str]) -> None:
        """There is nothing to stop, which is no error."""
        assert main(["stop", str(DIGITS)]) == 0
        assert capsys.readouterr().out == "digits: no server runs\n"

    def test_ask(self, capsys: pytest.CaptureFixture[str]) -> None:
        """There is nobody to ask: exit code 1, and what starts a server."""
        assert main(["ask", str(DIGITS)]) == 1
        assert re.search(
            r"no server of digits runs\n  hint: .*slipway run starts one", capsys.readouterr().err
        )


class TestStatus:
    """`slipway status` of what was left on disk."""

    def test_a_message_with_brackets_is_printed_as_it_is(
        self, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The first line of the last error is shown, whatever is in it."""
        folder = home / "runs" / "digits" / "20261122-030000-9f3a"
        folder.mkdir(parents=True)
        error = {"class": "DataError", "message": "expected [batch, 64] in [/x]\nmore", "hint": ""}
        verdict = {"outcome": "rolled_back", "run_id": folder.name, "error": error}
        (folder / "verdict.json").write_text(json.dumps(verdict))
        assert main(["status", str(DIGITS)]) == 0
        shown = capsys.readouterr().out
        assert f"rolled back (run {folder.name}): expected [batch, 64] in [/x]\n" in shown
        assert "more" not in shown

    @pytest.mark.parametrize(
        ("manifest", "said"),
        [
            ({"metrics": {"auc": 0.87654, "note": "[/x]"}, "seed": 7}, ["metrics    auc 0.8765\n", "seed 7"]),
            ({"metrics": {"loss": "NaN", "ratio": "Infinity"}}, ["metrics    loss nan, ratio inf\n"]),
            ({"run_id": "r1[/x]", "packages": ["tensorflow"]}, ["3 is of        run r1[/x]\n"]),
            ({"checks": [{"passed": True}, {"passed": False}]}, ["1 passed, 1 missed and only reported"]),
            ({"examples": "many", "metrics": None, "checks": "none"}, ["versions       3  in "]),
        ],
    )
    def test_a_manifest_that_says_other_things_is_shown_as_far_as_it_goes(
        self, home: Path, capsys: pytest.CaptureFixture[str], manifest: dict[str, Any], said: list[str]
    ) -> None:
        """Of another release, or of one who put the version there by hand."""
        file = home / "models" / "digits" / "3" / "assets.extra" / "manifest.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(manifest))
        assert main(["status", str(DIGITS)]) == 0
        shown = capsys.readouterr().out
        assert all(text in shown for text in said)

    def test_a_server_that_is_gone_is_told(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A record whose process has ended is not taken for a server; stopping it is no error."""
        gone = ServerRecord("digits", "process", "program", "identity", "/models", (), 1, 2, "999999999:1.0")
        server_records.write(gone)
        assert main(["status", str(DIGITS)]) == 0
        assert "nothing: the server (process 999999999) is gone; slipway run starts it again" in (
            " ".join(capsys.readouterr().out.split())
        )
        assert main(["stop", str(DIGITS)]) == 0
        assert main(["status", str(DIGITS)]) == 0
        assert "nothing: the server was stopped" in capsys.readouterr().out


TINY_FLOW = """\
import flows.environment
from prefect import flow
@flow(name="tiny")
def tiny(): return 1
tiny()
"""


class TestUi:
    """`slipway ui`."""

    def test_a_busy_port_is_refused_with_its_holder(
        self, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Exit code 1; the message names the program that has the port; no record is left."""
        monkeypatch.setattr(os, "environ", dict(os.environ))  # it is prepared for Prefect: here, a copy
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            assert main(["ui", "--port", str(port)]) == 1
        err = capsys.readouterr().err
        assert f"port {port} is in use by " in err
        assert f"(pid {os.getpid()})" in err
        assert "slipway ui --port names another" in err
        assert not (home / "servers").exists()

    @pytest.mark.timeout(600)  # a Prefect server starts
    def test_it_serves_is_found_and_ends(self, home: Path) -> None:
        """API and page answer, a flow run meanwhile is noted in it, and SIGTERM leaves no process.

        The database was damaged: it is moved aside, and the UI starts with a new one.
        """
        command, port = Slipway(home, None), free_port()
        database = home / "prefect" / "prefect.db"
        database.parent.mkdir(parents=True)
        database.write_bytes(random.Random(1).randbytes(20_000))
        command.environment = _without_prefect(command.environment)
        process = command.start("ui", "--port", str(port))
        address = f"http://127.0.0.1:{port}"
        try:
            eventually(lambda: process.poll() or _answers(f"{address}/api/health"), seconds=120)
            assert process.poll() is None, process.communicate()
            assert b"<html" in _get(f"{address}/").lower()
            _run_tiny_flow(home)
            with httpx.Client(base_url=f"{address}/api/", trust_env=False, timeout=30) as anyone:
                assert anyone.post("flows/filter", json={}).status_code == 401
                file = home / "prefect" / "api-auth-string"
                assert file.stat().st_mode & 0o777 == 0o600
                user, password = file.read_text().strip().split(":")
                listed = anyone.post("flows/filter", json={}, auth=(user, password)).json()
                assert [flow["name"] for flow in listed] == ["tiny"]
                assert _allows(anyone, address) and not _allows(anyone, "http://elsewhere.example")
            (home / "runs" / "digits").mkdir(parents=True)
            shown = command("status", PREFECT_API_URL=f"{address}/api").output
            assert "digits" in shown and "no Prefect server answers" not in shown
            family = psutil.Process(process.pid).children(recursive=True)
            assert family
        finally:
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        assert f"Prefect UI: {address}" in output
        assert f"{database} is damaged (file is not a database): moved to prefect.db.damaged" in output
        assert database.with_name("prefect.db.damaged").stat().st_size == 20_000
        assert [child for child in family if child.is_running()] == []
        assert not (home / "servers" / ".prefect-ui.json").exists()

    @pytest.mark.parametrize(
        ("variable", "value", "said"),
        [
            ("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "0", "did not answer within 0 s"),
            ("PREFECT_API_DATABASE_CONNECTION_URL", "sqlite+aiosqlite:////nowhere/a.db", "ended with exit"),
        ],
    )
    def test_a_server_that_does_not_answer_is_reported(
        self, home: Path, variable: str, value: str, said: str
    ) -> None:
        """At a deadline, or at once if it has ended, with the way out; neither process nor record is left."""
        command = Slipway(home, None)
        command.environment = _without_prefect(command.environment)
        done = command("ui", "--port", str(free_port()), **{variable: value})
        assert done.exit_code == 1, done.output
        assert said in done.output and "move that file away" in done.output
        assert not (home / "servers" / ".prefect-ui.json").exists()


def _allows(client: httpx.Client, origin: str) -> bool:
    """Return whether the API lets a page of this origin send requests to it."""
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    answer = client.options("flows/filter", headers=headers)
    return answer.is_success and answer.headers.get("Access-Control-Allow-Origin") in ("*", origin)


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return bytes(answer.read())


def _answers(url: str) -> bool:
    try:
        return bool(_get(url))
    except (urllib.error.URLError, OSError):
        return False


def _run_tiny_flow(home: Path) -> None:
    """Run a flow as a run would: with this home, and told of no Prefect server."""
    environment = {**_without_prefect(os.environ), "SLIPWAY_HOME": str(home)}
    command = [sys.executable, "-c", TINY_FLOW]
    subprocess.run(command, env=environment, cwd=REPOSITORY, check=True, capture_output=True, timeout=120)


def _without_prefect(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith("PREFECT_")}
