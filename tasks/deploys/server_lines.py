"""What the model's server prints while something is done with it, in the run's log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tasks.core import log_lines
from tasks.runs import stages
from tasks.servers import model_servers
from tasks.state import server_records


@contextmanager
def told(model_name: str) -> Iterator[None]:
    """Put into the run's log what the server printed inside the block, at its level, however the block ends.

    Where the block put another server in its place, that is all that this one printed.
    """
    before = server_records.read(model_name)
    printed = len(model_servers.server_log(before)) if before is not None else 0
    try:
        yield
    finally:
        after = server_records.read(model_name)
        if after is not None:
            same = before is not None and after.handle == before.handle
            log_lines.seen(model_servers.server_log(after)[printed if same else 0 :], stages.log)
