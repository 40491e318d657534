"""Power losses during publish, journal, withdraw and records: recovery leaves an approved version, whole.

kill -9 cannot show a missing fsync. Every system call that changes names, and every fsync, is recorded; the
states that POSIX allows after a power loss at any of them are made, and recovered from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from power_losses import Disk, distinct, recorded

from configs.schema.pipeline import DeploymentConfig, SmokeTestConfig
from tasks.core import durable_files
from tasks.core.artifacts import Endpoint, Recovery, Run
from tasks.deploys import interrupted_deploys, rollouts, undoing
from tasks.state import (
    deploy_journal,
    model_versions,
    server_records,
    version_checksums,
)
from tasks.state.deploy_journal import Journal
from tasks.state.server_records import ServerRecord

NAME = "small"
SERVER = ServerRecord(NAME, "external", "p", "i", "", (), 1, 2, "there", published_only=True)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A home and a base path; servers answer whatever version is the highest that is published."""
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "disk" / "home"))
    monkeypatch.setattr(rollouts, "serve", lambda *_: Endpoint(NAME, 1, "", "", "external", "", False))
    monkeypatch.setattr(rollouts, "put_back", lambda *_: SERVER)
    monkeypatch.setattr(rollouts, "stop", lambda *_: None)
    monkeypatch.setattr(undoing, "_see_it_answer", lambda *_: "answers")
    monkeypatch.setattr(interrupted_deploys.served_answers, "prove_again", lambda *_, **__: "answers")
    monkeypatch.setattr(interrupted_deploys, "_revived", lambda *_: Recovery())
    base = tmp_path / "disk" / "models"
    base.mkdir(parents=True)
    return Disk(tmp_path / "disk")


def _run(disk: Disk, run_id: str) -> Run:
    runs = disk.root / "home" / "runs" / NAME
    return Run(NAME, run_id, runs / run_id, disk.root, disk.root / "models")


def _nights(disk: Disk) -> None:
    """Deploy two versions, then roll back to the first, as runs do. What returns makes a promise."""
    previous = None
    for number in (1, 2):
        run = _run(disk, f"r{number}")
        deploy_journal.write(Journal(NAME, run.run_id, run.model_base_path, "prepared", previous, (), SERVER))
        candidate = model_versions.candidate_folder(run.model_base_path, run.run_id)
        (candidate / "variables").mkdir(parents=True)
        (candidate / "saved_model.pb").write_bytes(b"graph" * 100)
        (candidate / "variables" / "variables.index").write_bytes(b"index" * 100)
        model_versions.publish(
            candidate, run.model_base_path, "sequential", origin={"run_id": run.run_id, "previous": previous},
            published_only=True,
        )  # fmt: skip
        disk.promise(("visible", number))
        deploy_journal.note(run, "published", versions=(number,))
        server_records.write(SERVER)
        deploy_journal.note(run, "smoke-tested")
        journal = deploy_journal.of_run(run)
        assert journal is not None
        deploy_journal.conclude(journal, "committed")
        disk.promise(("committed", number))
        previous = number
    run = _run(disk, "r3")
    disk.promise(("undoing", 2))
    undoing.undo(
        Journal(NAME, "r3", run.model_base_path, "undoing", 1, (2,), SERVER), DeploymentConfig(),
        SmokeTestConfig(), run,
    )  # fmt: skip
    disk.promise(("undone", 2))


def _violations(disk: Disk, at_most: int) -> list[str]:
    """Return what is wrong after a recovery from states that a power loss leaves, each in turn."""
    states = distinct(disk.left)
    found: list[str] = []
    for number, left in enumerate(states):
        disk.replay(left)
        try:
            problems = _problems(disk, left.promises)
        except Exception as error:
            problems = [f"{type(error).__name__}: {error}"]
        found += [f"state {number} after {left.promises}: {each}" for each in problems]
        if len(found) >= at_most:
            break
    sys.stdout.write(
        f"{len(disk.left)} power losses, {len(states)} different states: {found or 'none bad'}\n"
    )
    return found


def _problems(disk: Disk, promises: tuple[Any, ...]) -> list[str]:
    """Recover, and return which promises are broken."""
    run = _run(disk, "r9")
    base = run.model_base_path
    last = {number: what for what, number in promises}
    unproven = set(model_versions.versions(base)) - {
        number for what, number in promises if what == "committed"
    }
    recovery = interrupted_deploys.recover_locked(DeploymentConfig(), SmokeTestConfig(), run)
    present = model_versions.versions(base)
    for folder in present.values():
        version_checksums.require_unchanged(folder)
    unproven &= set(present)
    deployed = {number for number, what in last.items() if what == "committed"}
    withdrawn = {number for number, what in last.items() if what == "undone"}
    broken = {
        "the journal is not concluded": deploy_journal.read(NAME) is not None,
        "a version has no list of its files":
            not all((folder / version_checksums.FILE).is_file() for folder in present.values()),
        "a deployed version is gone": not deployed <= set(model_versions.published(base)),
        "a withdrawn version is back": bool(withdrawn & set(present)),
        "a version serves that nobody proved":
            bool(unproven) and not recovery.found and not _is_concluded(unproven),
        "a number is used twice": model_versions.highest_ever(base) < max(last, default=0),
    }  # fmt: skip
    return [what for what, is_so in broken.items() if is_so]


def _is_concluded(numbers: set[int]) -> bool:
    return all(deploy_journal.conclusion(NAME, f"r{number}") == "committed" for number in numbers)


def test_recovery_survives_every_power_loss(disk: Disk) -> None:
    """Versions are whole, deployed ones stay, withdrawn ones stay away, and unproven ones are proven."""
    with recorded(disk):
        _nights(disk)
    assert len(distinct(disk.left)) > 300
    assert _violations(disk, 10) == []


def _without_files(path: Path) -> None:
    if path.is_dir():
        _real_sync(path)


def _without_folders(path: Path) -> None:
    if not path.is_dir():
        _real_sync(path)


_real_sync = durable_files.sync

MUTATIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "of the files of a version": lambda patched: patched.setattr(
        model_versions, "_sync_tree", lambda _: None
    ),
    "of the base path": lambda patched: patched.setattr(model_versions, "sync", _without_folders),
    "of state files": lambda patched: patched.setattr(durable_files, "sync", _without_files),
    "of their folders": lambda patched: patched.setattr(durable_files, "sync", _without_folders),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_removed_fsync_is_caught(disk: Disk, mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of fsync is there for a reason."""
    with recorded(disk), pytest.MonkeyPatch.context() as patched:
        MUTATIONS[mutation](patched)
        _nights(disk)
    assert _violations(disk, 1) != []
