"""The deploy journal: what is on disk, what is read back, and who holds the lock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.core import durable_files
from tasks.core.artifacts import Run
from tasks.core.errors import AlreadyRunning, EnvironmentFault, JournalUnreadable
from tasks.state import deploy_journal
from tasks.state.deploy_journal import Journal
from tasks.state.server_records import ServerRecord

SERVER = ServerRecord("small", "process", "model_server", "id", "/models", ("--a=1",), 1, 2)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of the pipeline `small`."""
    return Run("small", "r1", tmp_path / "home" / "runs" / "small" / "r1", tmp_path, tmp_path / "models")


def _journal(run: Run, **changes: Any) -> Journal:
    values = {"state": "prepared", "previous": 7, "server": SERVER, **changes}
    return Journal(run.pipeline, run.run_id, run.model_base_path, **values)


def test_it_is_read_as_it_was_written(run: Run) -> None:
    """Every field, the server's flags too; and when."""
    written = deploy_journal.write(_journal(run, versions=(8, 9), reason="slow"))
    assert deploy_journal.read("small") == written
    assert written.at.startswith("2")


def test_none_is_there_before_a_deploy_and_after_it(run: Run) -> None:
    """Its conclusion is filed in the run's folder, and found by the run's id."""
    assert deploy_journal.read("small") is None
    deploy_journal.write(_journal(run))
    deploy_journal.note(run, "published", versions=(8,))
    journal = deploy_journal.read("small")
    assert journal is not None and (journal.state, journal.versions) == ("published", (8,))
    deploy_journal.conclude(journal, "committed")
    assert deploy_journal.read("small") is None
    assert deploy_journal.conclusion("small", "r1") == "committed"
    assert deploy_journal.conclusion("small", "r2") is None


def test_another_runs_journal_is_not_written_to(run: Run) -> None:
    """A stage notes its own run's deploy only."""
    deploy_journal.write(_journal(run))
    other = Run("small", "r2", run.folder.with_name("r2"), run.source, run.model_base_path)
    deploy_journal.note(other, "smoke-tested")
    journal = deploy_journal.read("small")
    assert journal is not None and journal.state == "prepared"
    assert deploy_journal.of_run(other) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(0, 10_000))
def test_a_truncated_journal_is_told_from_none(run: Run, length: int) -> None:
    """Wherever it was cut: a deploy was under way, and nobody knows which."""
    deploy_journal.write(_journal(run))
    whole = deploy_journal.file("small").read_bytes()
    cut = whole[: length % (len(whole) - 2)]
    deploy_journal.file("small").write_bytes(cut)
    with pytest.raises(JournalUnreadable, match=r"deploy\.json"):
        deploy_journal.read("small")


def test_each_state_is_synced(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content and name, before the step after it begins; the names of new folders before."""
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(durable_files.os, "fsync", fsync)
    deploy_journal.write(_journal(run))
    assert [name.partition(".json")[0].lstrip(".") for name in synced[-2:]] == ["deploy", "small"]
    assert synced[-4:-2] == ["home", "runs"], "which hold the names of runs and small"


def test_a_journal_that_cannot_be_written_stops_the_deploy(run: Run, home: Path) -> None:
    """Before anything is changed; the message names the file."""
    home.mkdir()
    (home / "runs").write_text("no folder")
    with pytest.raises(EnvironmentFault, match=r"deploy\.json cannot be written: Not a directory"):
        deploy_journal.write(_journal(run))


HOLDER = """
import sys
from tasks.state import deploy_journal
with deploy_journal.held("small", 0):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_dies_with_its_owner(run: Run) -> None:
    """While another process holds it, a second one is refused; after kill -9 it is free."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(AlreadyRunning, match="another process is deploying small"):
            deploy_journal.held("small", 0).__enter__()
    finally:
        holder.kill()
        holder.communicate(timeout=10)
    with deploy_journal.held("small", 10):
        pass
