"""Servers that no client knows: program and flags are those of the model's own server, the ports are not.

A changed server rehearses in one before it takes over; a candidate is asked in one before it is published.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from tasks.servers import model_servers
from tasks.state import server_records
from tasks.state.server_records import ServerRecord, TemporaryRole


@contextmanager
def started(planned: ServerRecord, role: TemporaryRole) -> Iterator[ServerRecord]:
    """Run such a server for the duration of the block, and stop it however the block ends.

    One that a run which was killed left in this role is stopped first. Raises DeployFailed where it cannot
    be started; whether it comes up is for the block to see.
    """
    stop(planned.model_name, role)
    grpc_port = model_servers.choose_port(0, None)
    rest_port = model_servers.choose_port(0, None, taken=grpc_port)
    here = server_records.LOOPBACK
    network = "published" if planned.network == "relayed" else planned.network
    alone = replace(
        planned, grpc_port=grpc_port, rest_port=rest_port, address=here, host=here, network=network,
        relay="", handle="",
    )  # fmt: skip
    server_records.write_temporary(alone, role)
    try:
        alone = model_servers.start_temporary(alone, role)
        server_records.write_temporary(alone, role)
        yield alone
    finally:
        stop(planned.model_name, role)


def stop(model_name: str, role: TemporaryRole) -> None:
    """Stop the model's server in this role, recorded or not."""
    alone = server_records.read_temporary(model_name, role)
    if alone is not None:
        handle = alone.handle or model_servers.find_started(alone, role=role)
        if handle:
            model_servers.stop(replace(alone, handle=handle))
        server_records.forget_temporary(model_name, role)
