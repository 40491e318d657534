"""A model server that somebody else runs: it is asked, and never started, stopped or replaced.

It watches the same `model_base_path`, so that a version's rename has it load that version. This module has
what server_process and server_container have, with nothing to do where there is nothing that we may do.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.state.server_records import ServerRecord


def start(record: ServerRecord, _flags: Sequence[str], beside: bool = False, rehearsal: bool = False) -> str:
    """Return the server's handle, its gRPC address. Whether it answers is for a wait to find out."""
    assert not (beside or rehearsal), "nobody starts a second server at this address"
    return record.grpc


def log_place(_record: ServerRecord, **_: bool) -> str:
    """Return "": its log is with whoever runs it."""
    return ""


def find_started(*_: object, **__: object) -> None:
    """Return None: no run starts it."""
