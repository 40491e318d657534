"""That `auto` is not nervous: every example pipeline, trained, validated and served under mixed conditions.

Another instruction set is emulated: TF_ENABLE_ONEDNN_OPTS and ONEDNN_MAX_CPU_ISA choose its kernels.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_port
from mixed_conditions import PIPELINES, model
from slipway_command import DIGITS, REPOSITORY, Slipway, user_environment
from slipway_command import QUICK as QUICK_TRAINING
from waiting import eventually

from tasks.servers import model_status

PROGRAM = Path(__file__).with_name("mixed_conditions.py")
CONDITIONS = {
    "as it is": {},
    "AVX2": {"TF_ENABLE_ONEDNN_OPTS": "0", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "SSE4.1": {"TF_ENABLE_ONEDNN_OPTS": "0", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "oneDNN": {"TF_ENABLE_ONEDNN_OPTS": "1"},
    "oneDNN, AVX2": {"TF_ENABLE_ONEDNN_OPTS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "oneDNN, SSE4.1": {"TF_ENABLE_ONEDNN_OPTS": "1", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
QUICK = ("AVX2", "oneDNN, SSE4.1")
"""Those of `make test`; `make test-all` mixes all six."""


def environment(name: str) -> dict[str, str]:
    plain = {key: value for key, value in os.environ.items() if "ONEDNN" not in key}
    return {**plain, **CONDITIONS[name], "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}


def ran(name: str, *arguments: str) -> Any:
    """Run a part of `mixed_conditions.py` under the conditions; return what it prints last, as JSON."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments], env=environment(name), timeout=600,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def served(name: str, folder: Path, models: Sequence[str], log: Path) -> Iterator[str]:
    """Serve the models, each a base path in `folder`, under the conditions; yield `GRPC REST`."""
    config = "".join(
        f'config {{ name: "{model}" base_path: "{folder / model}" model_platform: "tensorflow" }}\n'
        for model in models
    )
    (folder / f"{name}.config").write_text(f"model_config_list {{\n{config}}}\n")
    grpc, rest = free_port(), free_port()
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "model_server", f"--port={grpc}", f"--rest_api_port={rest}",
             f"--model_config_file={folder / f'{name}.config'}"],
            env=environment(name), stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{rest}"
        eventually(lambda: server.poll() is not None or bool(model_status.numerics(address)), seconds=120)
        eventually(lambda: all(model_status.live_version(address, model) for model in models), seconds=120)
        yield f"127.0.0.1:{grpc} {address}"
    finally:
        server.terminate()
        server.wait(60)


@dataclass
class Mixed:
    """What came of each mix of conditions."""

    rows: list[dict[str, Any]]

    @property
    def alarms(self) -> list[dict[str, Any]]:
        """Those that were rejected."""
        return [row for row in self.rows if row["problem"]]


def mixed(folder: Path, names: Sequence[str], pipelines: Sequence[str], load: int) -> Mixed:
    """Export under each of the conditions, validate each export under each, and serve it under each."""
    rows: list[dict[str, Any]] = []
    chosen = ",".join(pipelines)
    ran(names[0], "train", str(folder), chosen)
    for exported in names:
        ran(exported, "export", str(folder), chosen, exported)
    for validated in names:
        rows += ran(validated, "validate", str(folder), chosen, validated, *names)
    models = [model(pipeline, exported) for pipeline in pipelines for exported in names]
    for serving in names:
        with served(serving, folder, models, folder / f"{serving}.log") as addresses:
            rows += ran(serving, "ask", str(folder), chosen, serving, addresses, str(load), *names)
    return Mixed(rows)


def _show(found: Mixed) -> None:
    lines = ["| pipeline | stage | comparisons | same bits due | largest, of scale | false alarms |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for pipeline in PIPELINES:
        for stage in ("validate", "served", "served under load"):
            rows = [row for row in found.rows if (row["pipeline"], row["stage"]) == (pipeline, stage)]
            if rows:
                bits = sum(row["bits"] for row in rows)
                largest = max(row["largest"] for row in rows)
                alarms = sum(bool(row["problem"]) for row in rows)
                lines.append(f"| {pipeline} | {stage} | {len(rows)} | {bits} | {largest:.1g} | {alarms} |")
    sys.stdout.write("\n\n" + "\n".join(lines) + "\n")


@pytest.mark.timeout(600)
def test_two_machines_that_round_differently_do_not_disagree(tmp_path: Path) -> None:
    """Trained on one, exported, validated, served on both; the same bits are due where both are alike."""
    found = mixed(tmp_path, QUICK, ("digits", "dtypes"), load=0)
    _show(found)
    assert not found.alarms
    alike = [row for row in found.rows if row["exported"] == row["under"] and row["stage"] == "validate"]
    assert alike and all(row["bits"] for row in alike)
    apart = [row for row in found.rows if row["exported"] != row["under"]]
    assert apart and not any(row["bits"] for row in apart)
    assert any(row["largest"] > 0 for row in apart), "these machines do round differently"


@pytest.mark.timeout(3000)
def test_no_mix_of_six_machines_is_a_false_alarm_even_under_load(tmp_path: Path) -> None:
    """Each pipeline is exported under six conditions, validated under six, served under six to 8 clients."""
    found = mixed(tmp_path, list(CONDITIONS), PIPELINES, load=8)
    _show(found)
    assert not found.alarms
    again = ",".join(["digits"] * 100)
    repeated = ran("AVX2", "validate", str(tmp_path), again, "AVX2", "AVX2", "as it is")
    assert len(repeated) == 200 and not Mixed(repeated).alarms, "100 repetitions"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(len(CONDITIONS)), ids=list(CONDITIONS))
def test_each_machine_deploys_swaps_and_rolls_back(first: int, slipway: Slipway) -> None:
    """The server runs under the first conditions; the version swapped in is made under the next."""
    names = list(CONDITIONS)
    one, other, third = (CONDITIONS[names[(first + step) % len(names)]] for step in range(3))
    settings = (*QUICK_TRAINING, "deployment.grpc_port=0", "deployment.rest_port=0", "deployment.canary=true")
    deployed = slipway.run(DIGITS, *settings, **one)
    assert deployed.exit_code == 0, deployed.output
    swapped = slipway.run(DIGITS, *settings, "training.seed=2", **other)
    assert swapped.exit_code == 0, swapped.output
    back = slipway("rollback", DIGITS, **third)
    assert back.exit_code == 0, back.output
    assert f"version {deployed.verdict['version']} answers" in back.output


ODD: dict[str, str] = {
    **dict.fromkeys(
        ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9"
    ),
    "LC_ALL": "C", "LANG": "C", "TZ": "Asia/Kathmandu", "HOME": "/proc/nowhere", "DOCKER_HOST": "tcp://127.0.0.1:1",
    **CONDITIONS["AVX2"],
}  # fmt: skip
"""A proxy that is down, no UTF-8, another time zone, no writable home, no Docker engine, no AVX-512."""


READ_BY_OTHERS = {
    "models/**": "versions: the model server is another user where it runs in a container",
    "metrics/**": "the last run's numbers: their collector, node_exporter, is another user",
    "servers/*.relay": "the relay's configuration, in a folder that is closed: mounted into its container",
    "servers/*.relay/*": "the same",
    "verdict.json": "a file that the user named: `--json`",
}
"""What other users may read in a home, and why. What a version should answer is private in `models` too."""


def _open_to_others(home: Path) -> list[str]:
    """Return which files and folders others can read or write, but must not."""
    allowed = {
        path for pattern in READ_BY_OTHERS for path in (*home.glob(pattern), *home.glob(f"{pattern}/*"))
    }
    found = []
    for path in home.rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        private = path not in allowed or "answers" in path.parts
        writable = mode & 0o022 and path.name != "verdict.json"
        if not path.is_symlink() and (writable or (private and mode & 0o077)):
            found.append(f"{path.relative_to(home)} {mode:o}")
    return found


@pytest.mark.timeout(600)
def test_a_run_deploys_on_an_odd_machine(tmp_path: Path) -> None:
    """And on one core, under umask 000, in folders with spaces and umlauts, with its own Prefect server.

    Other users read nothing of its home but what READ_BY_OTHERS names.
    """
    folder = tmp_path / "Häuser und Gärten"
    folder.mkdir()
    pipeline = folder / "digits für alle"
    shutil.copytree(DIGITS, pipeline)
    slipway = Slipway(folder / "Zustand & mehr", None)
    slipway.environment |= ODD
    cores, umask = os.sched_getaffinity(0), os.umask(0o000)
    os.sched_setaffinity(0, {min(cores)})
    try:
        ports = ("deployment.grpc_port=0", "deployment.rest_port=0")
        done = slipway.run(pipeline, *QUICK_TRAINING, *ports, "deployment.canary=true")
        assert done.exit_code == 0, done.output
        assert done.checks["canary Predict predict"]["limit"] == "same bits"
        asked = slipway("ask", pipeline)
        assert asked.exit_code == 0 and "example 0" in asked.output, asked.output
        status = slipway("status", pipeline)
        assert status.exit_code == 0 and "digits für alle" in status.output
        assert _open_to_others(slipway.home) == []
        assert slipway.home.stat().st_mode & 0o777 == 0o711
        assert next(slipway.home.glob("models/*/*/saved_model.pb")).stat().st_mode & 0o777 == 0o644
        assert next(slipway.home.glob("metrics/*.prom")).stat().st_mode & 0o777 == 0o644
    finally:
        os.sched_setaffinity(0, cores)
        os.umask(umask)
        slipway.stop_servers()


ISOLATED = ("unshare", "--net", "sh", "-c")
NO_IPV6 = "ip link set lo up && echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"
COMMANDS = """
set -e
test ! -s /proc/net/if_inet6
"$PYTHON" -c 'import os; assert (os.cpu_count(), len(os.sched_getaffinity(0))) == (16, 16)'
"$PYTHON" -c 'import locale, time; locale.setlocale(locale.LC_ALL, ""); assert locale.str(1.5) == "1,5"'
umask 077
slipway() { "$PYTHON" -c 'import sys; from flows.command.cli import main; sys.exit(main())' "$@"; }
set -- --set deployment.target=process --set deployment.canary=true --set deployment.grpc_port=0 \
  --set deployment.rest_port=0 --set training.max_steps=500
trap 'slipway stop configs/digits' EXIT
slipway run configs/digits "$@" --json "$SLIPWAY_HOME/verdict.json"
slipway run configs/digits "$@" --set training.seed=2
slipway ask configs/digits
slipway status configs/digits
slipway rollback configs/digits
"""


@pytest.mark.timeout(1500)
def test_a_run_deploys_swaps_and_rolls_back_on_another_odd_machine(tmp_path: Path) -> None:
    """With 16 cores, in German, under umask 077, without IPv6 and without any network but loopback."""
    compiler = shutil.which("cc")
    if compiler is None or shutil.which("localedef") is None:
        pytest.skip("no C compiler (cc) or no localedef is here")
    if subprocess.run([*ISOLATED, NO_IPV6], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace without IPv6 can be made")
    cores = tmp_path / "many_cores.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", cores, Path(__file__).with_name("many_cores.c"), "-ldl"],
        check=True,
    )
    subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8"], check=True)
    home = tmp_path / "home"
    done = subprocess.run(
        [*ISOLATED, f"{NO_IPV6}\n{COMMANDS}"], capture_output=True, text=True, timeout=1400, check=False,
        cwd=REPOSITORY, stdin=subprocess.DEVNULL,
        env={**user_environment(home), "PYTHON": sys.executable, "LD_PRELOAD": str(cores),
             "LOCPATH": str(tmp_path), "LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    first = json.loads((home / "verdict.json").read_text())
    assert first["outcome"] == "deployed"
    assert f"version {first['version']} answers" in done.stdout
    assert _open_to_others(home) == []
