"""The tutorial, typed by a new user: every console block of docs/tutorial.md, in order, in one shell."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from documented import commands
from slipway_command import REPOSITORY, user_environment

PAGE = REPOSITORY / "docs" / "tutorial.md"
NOT_TYPED = (
    "make install", ". .venv/bin/activate",
    "slipway ui --port 4200 &", "export PREFECT_API_URL=http://127.0.0.1:4200/api",
    'export PREFECT_API_AUTH_STRING="$(cat var/prefect/api-auth-string)"',
)  # fmt: skip
"""The environment that the tests run in is the one that the first two make; Prefect's server is that of the
test session, from the first command on (tests/test_cli.py starts the UI)."""

CHECKOUT = ("configs", "flows", "tasks", "containers", "prefect.yaml", "pyproject.toml")
"""Copied, so that what the tutorial makes and changes is not in this repository."""

PATIENCE_SECONDS = 1_200
"""Two minutes on a quiet machine; only what hangs takes longer than this."""

pytestmark = pytest.mark.timeout(PATIENCE_SECONDS + 60)

_SCRIPT = """\
set -euo pipefail
trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT
set -v
{typed}
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout."""
    folder = tmp_path_factory.mktemp("checkout")
    skipped = shutil.ignore_patterns("__pycache__", ".*")
    for name in CHECKOUT:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=skipped)
        else:
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture(scope="module")
def typed(checkout: Path, prefect_api: str) -> str:
    """What the terminal showed; every command has ended as the tutorial says.

    Substituted: without the UI, the worker is the first job in the background; models are served by local
    processes; the worker looks for runs every two seconds, not every ten.
    """
    lines = [line for line in commands(PAGE) if line not in NOT_TYPED]
    assert len(commands(PAGE)) - len(lines) == len(NOT_TYPED)
    script = _SCRIPT.format(typed="\n".join(lines)).replace("kill %2 %1", "kill %1")
    environment = {
        **user_environment(checkout / "var"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{checkout}:{checkout / 'containers'}",
        "PREFECT_API_URL": prefect_api,
        "DOCKER_HOST": "unix:///nonexistent",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
    with (checkout / "terminal.txt").open("w") as terminal:
        shell = subprocess.Popen(
            ["bash", "-c", script], cwd=checkout, env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=terminal, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            exit_code = shell.wait(timeout=PATIENCE_SECONDS)
        finally:
            if shell.poll() is None:
                os.killpg(shell.pid, signal.SIGKILL)
                subprocess.run(["slipway", "stop", "configs/wines"], cwd=checkout, env=environment)
    output = (checkout / "terminal.txt").read_text()
    assert exit_code == 0, output
    return output


def test_every_command_does_what_the_page_says(typed: str) -> None:
    """Guessed, valid, deployed, asked, rejected with exit code 3, scheduled, and deployed by the worker."""
    for said in (
        "guessed: the last column; 3 classes: 0, 1, 2",
        "gate: accuracy at least 0.39: always saying the commonest class of the sample has this one",
        "pipeline wines is valid",
        ": deployed",
        "Classify example",
        "exit code 3",
        "added nightly-wines",
        "Deployment 'retrain-and-deploy/nightly-wines' successfully created",
        "wines: stopped process",
    ):
        assert said in typed, typed


def test_two_versions_were_deployed(typed: str, checkout: Path) -> None:
    """One by hand and one by the worker; the rejected run published nothing."""
    versions = [path for path in (checkout / "var" / "models" / "wines").iterdir() if path.name.isdigit()]
    assert len(versions) == 2, typed


def test_it_is_scheduled(typed: str, checkout: Path) -> None:
    """prefect.yaml of the copy has the night; that of the repository does not."""
    added = yaml.safe_load((checkout / "prefect.yaml").read_text())["deployments"][-1]
    assert added["name"] == "nightly-wines"
    assert added["schedules"] == [
        {"cron": "30 2 * * *", "timezone": "Europe/Berlin", "slug": "nightly", "active": True}
    ]
    assert "wines" not in (REPOSITORY / "prefect.yaml").read_text()
