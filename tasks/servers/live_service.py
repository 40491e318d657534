"""What answers clients of a model now, where, and since when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tasks.runs import run_folders
from tasks.servers import model_servers, model_status


@dataclass(frozen=True)
class LiveService:
    """The state of a model's server."""

    version: int | None
    """The version that it answers with; None if nothing answers."""
    since: datetime | None = None
    """When a run or a rollback put that version into service; None if no verdict says so."""
    grpc: str = ""
    """host:port, if a server is on record."""
    server: str = ""
    """Container, process or external server; "" if none is on record."""


def of(pipeline: str) -> LiveService:
    """Return what serves the pipeline's model now. Asks the server on record, for at most seconds."""
    record = model_servers.recorded(pipeline)
    if record is None or not record.handle:
        return LiveService(None)
    live = model_status.live_version(record.rest, pipeline) if model_servers.is_alive(record) else None
    since = None if live is None else run_folders.serving_since(pipeline, live)
    return LiveService(live, since, record.grpc, record.describe())
