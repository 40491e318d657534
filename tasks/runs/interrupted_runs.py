"""Runs that were killed: their process is gone, and what it noted when it took the lock is left."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from configs.schema.home import home, runs_folder

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InterruptedRun:
    """A run that neither ended nor goes on."""

    pipeline: str
    run_id: str
    file: Path
    """The YAML that it was started from."""
    flow: str | None
    """Name of its Prefect flow, and the flow run's id; None where it was started without Prefect."""
    flow_run: str | None

    @property
    def began(self) -> bool:
        """Whether it got as far as its configuration: else there is nothing to go on with."""
        return (runs_folder(self.pipeline) / self.run_id / "config.yaml").is_file()


def found(pipeline: str | None = None) -> list[InterruptedRun]:
    """Return the killed run of each pipeline, or of one, where there is one. Nothing is changed."""
    folders = sorted(each for each in (home() / "runs").glob(pipeline or "*") if each.is_dir())
    notes = [folder / ".running" for folder in folders]
    return [killed for note in notes if (killed := _killed(note)) is not None]


def forget(killed: InterruptedRun) -> None:
    """Forget the killed run: it has been resumed, or cannot be."""
    (runs_folder(killed.pipeline) / ".running").unlink(missing_ok=True)


def _killed(note: Path) -> InterruptedRun | None:
    try:
        told = json.loads(note.read_text())
        left = InterruptedRun(note.parent.name, str(told["run_id"]), Path(told["file"]),
                              told.get("flow"), told.get("flow_run"))  # fmt: skip
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
        _log.warning("%s: ignoring who ran last, so that no killed run is resumed (%s)", note, problem)
        return None
    return None if _is_held(note.parent / ".lock") else left


def _is_held(lock: Path) -> bool:
    """Return whether a process holds the pipeline's lock, in this container or another.

    The lock is taken and given back. A run that began in that very moment would be refused; where no run
    was killed there is no note, and the lock is left alone.
    """
    try:
        with FileLock(lock, timeout=0, mode=0o600):
            return False
    except Timeout:
        return True
