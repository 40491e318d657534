"""The version that is served now: what the live server answers with."""

from __future__ import annotations

from pathlib import Path

from tasks.core.artifacts import Run
from tasks.servers import model_servers, model_status
from tasks.state import model_versions


def served(run: Run) -> tuple[int, Path] | None:
    """Return number and folder of the version that the live server answers with; None where there is none.

    Where no server runs it is the highest version on disk: the one that the next server would load.
    """
    record = model_servers.running(run.pipeline)
    live = model_status.live_version(record.rest, run.pipeline) if record else None
    present = model_versions.versions(run.model_base_path)
    number = live or max(present, default=0)
    return (number, present[number]) if number in present else None
