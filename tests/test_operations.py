"""The operations page, typed by who operates it: every console block, in one shell, beside a real server."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from documented import commands
from installed_clones import without_install
from nightly_station import Station
from slipway_command import REPOSITORY

PAGE = REPOSITORY / "docs" / "operations.md"
NOT_TYPED = ("slipway ui --port 4200", "prefect worker start --pool slipway")
"""They do not end: tests/test_cli.py starts the UI, and every test of a night a worker."""
OLD_SECONDS = 40 * 86400

pytestmark = pytest.mark.timeout(900)


def _git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    done = subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True, timeout=120
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone that is one commit behind, with a version, an old run and a new one under `var`."""
    folder = tmp_path_factory.mktemp("operations")
    _git(folder, "clone", "--quiet", "--no-hardlinks", str(REPOSITORY), "origin")
    _git(folder / "origin", "checkout", "--quiet", "-B", "main")
    _git(folder, "clone", "--quiet", "origin", "checkout")
    _git(folder / "origin", "commit", "--quiet", "--allow-empty", "--message", "a newer release")
    checkout = folder / "checkout"
    without_install(checkout)
    version = checkout / "var" / "models" / "digits" / "0001"
    version.mkdir(parents=True)
    (version / "saved_model.pb").write_bytes(b"a graph")
    for run in ("20260901-030000-000001", "20261122-030000-000002"):
        (checkout / "var" / "runs" / "digits" / run).mkdir(parents=True)
    old = checkout / "var" / "runs" / "digits" / "20260901-030000-000001"
    newest = old.stat().st_mtime
    os.utime(old, (newest - OLD_SECONDS, newest - OLD_SECONDS))
    return checkout


@pytest.fixture(scope="module")
def typed(checkout: Path) -> Iterator[str]:
    """What the terminal showed, while Prefect's server is at work on the data base that is backed up."""
    lines = [line for line in commands(PAGE) if line not in NOT_TYPED]
    assert len(commands(PAGE)) - len(lines) == len(NOT_TYPED)
    station = Station(checkout.parent)
    with station.server():
        (checkout / "var" / "prefect").symlink_to(checkout.parent / "server")
        station.ask("work_pools/", name="slipway", type="process")
        environment = {
            **station.environment,
            "SLIPWAY_HOME": str(checkout / "var"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{checkout}:{checkout / 'containers'}",
            "DOCKER_HOST": "unix:///nonexistent",
        }
        done = subprocess.run(
            ["bash", "-e", "-u", "-o", "pipefail", "-v", "-c", "\n".join(lines)], cwd=checkout,
            env=environment, timeout=600, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        yield done.stdout


def test_the_state_is_shown(typed: str) -> None:
    """What is configured, how much of the disk each takes, and what Prefect was told."""
    for said in (
        "pipeline digits is valid",
        "slipway",
        "var/models/digits",
        "retrain-and-deploy/nightly-digits",
    ):
        assert said in typed, typed


def test_old_runs_go_and_newer_ones_stay(typed: str, checkout: Path) -> None:
    """By the age of their folders."""
    left = [run.name for run in (checkout / "var" / "runs" / "digits").iterdir()]
    assert left == ["20261122-030000-000002"], typed


def test_the_backups_are_whole(typed: str, checkout: Path) -> None:
    """Models, and a data base that SQLite finds sound, with what the server had in it."""
    with tarfile.open(checkout / "models.tar.gz") as backup:
        assert "models/digits/0001/saved_model.pb" in backup.getnames()
    with sqlite3.connect(checkout / "prefect-backup.db") as backup_of_prefect:
        assert backup_of_prefect.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert ("slipway",) in backup_of_prefect.execute("SELECT name FROM work_pool").fetchall()


def test_the_newer_release_is_there_and_deployed(typed: str, checkout: Path) -> None:
    """Pulled, and every deployment told to Prefect."""
    assert _git(checkout, "log", "-1", "--format=%s") == "a newer release"
    assert typed.count("successfully created") == (REPOSITORY / "prefect.yaml").read_text().count("- name:")
