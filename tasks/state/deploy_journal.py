"""What a deploy is about to do, on disk before it does it: `$SLIPWAY_HOME/runs/<pipeline>/deploy.json`.

    prepared ─▶ published ─▶ loaded ─▶ smoke-tested ─▶ committed
        └───────────┴───────────┴─▶ undoing ─▶ undone

A state is synced before the step after it begins, so that whoever finds the file knows what may have been
done since. The file is there while a deploy is not over. Its conclusion is filed in the run's folder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from configs.schema.home import runs_folder
from tasks.core import durable_files
from tasks.core.artifacts import Run
from tasks.core.errors import AlreadyRunning, EnvironmentFault, JournalUnreadable
from tasks.state import state_files
from tasks.state.server_records import ServerRecord
from tasks.state.state_files import StateFileDamaged

State = Literal["prepared", "published", "loaded", "smoke-tested", "committed", "undoing", "undone"]

_NAME = "deploy.json"
_RECOVER = "run `slipway recover`: it decides by the version folders and the server"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Journal:
    """A deploy, or a rollback, that is under way."""

    pipeline: str
    run_id: str
    model_base_path: Path
    state: State
    """`prepared`: nothing is published, or the rename is done and not noted yet. `published`: the server
    may load it. `loaded`: it is AVAILABLE. `smoke-tested`: its answers are proven. `undoing`: the versions
    are to be withdrawn."""
    previous: int | None
    """The version that answered before, and answers again once this is undone; None where there was none."""
    versions: tuple[int, ...] = ()
    """What was published, or what a rollback withdraws; the lowest first."""
    server: ServerRecord | None = None
    """The server that is to answer, not started yet; None where any that runs will do."""
    reason: str = ""
    """Why it is undone."""
    at: str = ""
    """When this state was written: ISO 8601, UTC."""

    @property
    def numbers(self) -> str:
        """The versions, as people read them."""
        return ", ".join(map(str, self.versions)) or "none"


def file(pipeline: str) -> Path:
    """Return where the journal of the deploy that is under way lies."""
    return runs_folder(pipeline) / _NAME


def filed(pipeline: str, run_id: str) -> Path:
    """Return where a run's concluded deploy is filed."""
    return runs_folder(pipeline) / run_id / _NAME


def read(pipeline: str) -> Journal | None:
    """Return the deploy that is not over; None where there is none. Raises JournalUnreadable."""
    return _read(file(pipeline))


def conclusion(pipeline: str, run_id: str) -> State | None:
    """Return what a run's deploy came to; None where it came to nothing, or that cannot be read."""
    try:
        journal = _read(filed(pipeline, run_id))
    except JournalUnreadable:
        return None
    return journal.state if journal else None


def _read(path: Path) -> Journal | None:
    try:
        fields = state_files.read(path)
        return TypeAdapter(Journal).validate_python(fields) if fields is not None else None
    except ValidationError as error:
        raise JournalUnreadable(f"{path}: {error.errors()[0]['msg']}", _RECOVER) from None
    except StateFileDamaged as error:
        raise JournalUnreadable(str(error), _RECOVER) from None


def write(journal: Journal) -> Journal:
    """Write the journal durably. Raises EnvironmentFault."""
    stamped = replace(journal, at=datetime.now(timezone.utc).isoformat(timespec="milliseconds"))
    _write(file(journal.pipeline), stamped)
    return stamped


def _write(path: Path, journal: Journal) -> None:
    try:
        state_files.write(path, to_jsonable_python(journal))
    except OSError as error:
        message = f"the deploy journal {path} cannot be written: {error.strerror}"
        raise EnvironmentFault(message, "free some space, or set SLIPWAY_HOME to another folder") from None


def note(run: Run, state: State, **changes: Any) -> None:
    """Record that the run's deploy has reached `state`. Does nothing if a stage is run alone."""
    journal = of_run(run)
    if journal is not None:
        write(replace(journal, state=state, **changes))


def of_run(run: Run) -> Journal | None:
    """Return the deploy that is under way, if it is the run's."""
    journal = read(run.pipeline)
    return journal if journal is not None and journal.run_id == run.run_id else None


def planned_server(pipeline: str) -> ServerRecord | None:
    """Return the server that an unfinished deploy was about to start, if any; a damaged journal is told."""
    try:
        journal = read(pipeline)
    except JournalUnreadable as error:
        _log.warning("%s: continuing without it", error.message)
        return None
    return journal.server if journal else None


def conclude(journal: Journal, state: Literal["committed", "undone"]) -> None:
    """File what the deploy came to in its run's folder, and have none under way."""
    ended = replace(journal, state=state, at=datetime.now(timezone.utc).isoformat(timespec="milliseconds"))
    _write(filed(journal.pipeline, journal.run_id), ended)
    discard(journal.pipeline)


def discard(pipeline: str) -> None:
    """Remove the journal: no deploy is in progress."""
    state_files.remove(file(pipeline))


@contextmanager
def held(pipeline: str, timeout_seconds: float) -> Iterator[None]:
    """Hold the lock under which what is served changes; the operating system frees it from the dead.

    Waits for `timeout_seconds` at most: a deploy or a rollback holds it for seconds, training does not.
    Raises AlreadyRunning, EnvironmentFault.
    """
    folder = runs_folder(pipeline)
    try:
        durable_files.make_folder(folder)
        lock = FileLock(folder / ".deploy.lock", timeout=timeout_seconds, mode=0o600)
        lock.acquire()
    except Timeout:
        message = f"another process is deploying {pipeline}, or rolling it back"
        raise AlreadyRunning(message, "wait for it to end, or stop it") from None
    except OSError as error:
        message = f"{folder} is not writable: {error.strerror}"
        raise EnvironmentFault(message, "set SLIPWAY_HOME to a folder that is") from None
    with lock:
        yield
