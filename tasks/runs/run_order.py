"""Which run of a pipeline is newer: by when each started, not by its name, which somebody may have chosen."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

from configs.schema.home import runs_folder
from tasks.core import durable_files

RUN_ID = "%Y%m%d-%H%M%S-%f"
_STARTED = ".started"
"""In a run's folder: when it first started, ISO 8601 in UTC. A resumed run keeps it."""


def record_start(folder: Path) -> None:
    """Record that the run in `folder` starts now, unless it did before. Raises OSError.

    It is after the start of every other run of the pipeline, even if the clock went back.
    """
    if (folder / _STARTED).exists():
        return
    now, newest = datetime.now(timezone.utc), newest_start(folder.parent.name, besides=folder)
    moment = now if newest is None or now > newest else newest + timedelta(microseconds=1)
    durable_files.write(folder / _STARTED, moment.isoformat().encode(), synced=False)


def newest_start(pipeline_name: str, besides: Path | None = None) -> datetime | None:
    """Return when the newest run of the pipeline started; None if there is none."""
    folders = (each for each in runs_folder(pipeline_name).glob("*") if each.is_dir() and each != besides)
    return max(map(started, folders), default=None)


def started(folder: Path) -> datetime:
    """Return when the run in `folder` started: as recorded, else by the time that is its name.

    Without either, as after a damage, it is when its configuration was written.
    """
    try:
        return datetime.fromisoformat((folder / _STARTED).read_text()).astimezone(timezone.utc)
    except (OSError, ValueError, OverflowError):
        return time_in(folder.name) or _written(folder)


def time_in(run_id: str) -> datetime | None:
    """Return the time that a run's id begins with; None for a name that somebody gave."""
    for text, form in ((run_id, RUN_ID), (run_id[:15], RUN_ID.removesuffix("-%f"))):
        try:
            return datetime.strptime(text, form).replace(tzinfo=timezone.utc)
        except ValueError:
            continue
    return None


def oldest_first(pipeline_name: str, having: str) -> list[Path]:
    """Return the folders of the pipeline's runs that hold the file `having`, a path relative to them.

    A link that leads nowhere counts: whoever reads it reports the damage.
    """
    folders = runs_folder(pipeline_name).glob("*")
    found = (each for each in folders if os.path.lexists(each / having))
    return sorted(found, key=lambda each: (started(each), each.name))


def _written(folder: Path) -> datetime:
    for path in (folder / "config.yaml", folder):
        try:
            return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
        except OSError:
            continue
    return datetime.min.replace(tzinfo=timezone.utc)
