"""Which server answers for a model: the one that runs, a new one in its place, or the one of before again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tasks.core.artifacts import Endpoint
from tasks.core.errors import DeployFailed, EnvironmentFault
from tasks.deploys import temporary_servers
from tasks.servers import model_servers, model_status, server_container, server_image, server_process
from tasks.servers.model_servers import Deadline
from tasks.state import server_records
from tasks.state.server_records import ServerRecord

Prove = Callable[[Endpoint], object]
"""Asks an endpoint, and raises SmokeTestFailed where its answers are wrong."""


def serve(planned: ServerRecord, version: int, deadline: Deadline, log: Path, prove: Prove) -> Endpoint:
    """Deploy the version to the running server if it matches the plan, otherwise to a new one.

    A new one in a running one's place is proven first, on ports of its own: if it is no good, the old one
    never stopped. Then it is started beside the old one and has the clients before that is drained, so that
    there is no gap; where two cannot be reached at one address, the old one is stopped first. A running
    server that is mute over REST or gRPC is stopped and replaced. An external one is just waited for.
    Raises DeployFailed with the server's last log lines, and what `prove` raises.
    """
    running = _present(planned)
    mute = running is not None and model_servers.is_mute(running)
    if running is not None and not mute and _is_as(running, planned):
        _let_clients_in(running)
        model_servers.wait_until_live(running, version, deadline, log)
        return endpoint(running, version, started=False)
    if running is not None and not mute and planned.target != "external":
        _rehearse(planned, version, deadline, log, prove)
        if _can_overlap(running, planned):
            return _take_over(running, planned, version, deadline, log)
    if running is not None:
        server_records.set_aside(running)
        model_servers.stop(
            running, model_servers.MUTE_GRACE_SECONDS if mute else model_servers.STOP_GRACE_SECONDS
        )
    record = model_servers.start(planned)
    wait_for_good(record, version, deadline, log)
    return endpoint(record, version, started=record.target != "external")


def wait_for_good(record: ServerRecord, version: int, deadline: Deadline, log: Path) -> None:
    """Return when the version is what the server answers with; it is started again from now on if it dies.

    Only a container is: for a process there is nobody who could. It need not be for a container that
    answers while its engine does not.
    """
    model_servers.wait_until_live(record, version, deadline, log)
    if record.target == "docker":
        with suppress(EnvironmentFault):
            server_container.keep_running(record.handle)


def see_live(record: ServerRecord, version: int, seconds: float, log: Path) -> ServerRecord:
    """Return the server when the version is what it answers with, for `seconds` at most.

    One of ours that answers with no version at all, or is mute over REST or gRPC, is started anew, once.
    Raises DeployFailed.
    """
    try:
        wait_for_good(record, version, Deadline.after(seconds), log)
        return record
    except DeployFailed:
        is_live = model_status.live_version(record.rest, record.model_name) is not None
        if record.target == "external" or (is_live and not model_servers.is_mute(record)):
            raise
    return started_anew(record, version, seconds, log)


def started_anew(record: ServerRecord, version: int, seconds: float, log: Path) -> ServerRecord:
    """Return a new server in the place of one that is gone, or answers nothing. Raises DeployFailed."""
    model_servers.stop(record, model_servers.MUTE_GRACE_SECONDS)
    started = model_servers.start(record)
    wait_for_good(started, version, Deadline.after(seconds), log)
    return started


def of_model(planned: ServerRecord) -> ServerRecord | None:
    """Return the model's server if it runs, also one whose start was not noted: its run was killed then."""
    running = model_servers.running(planned.model_name)
    known = running.handle if running is not None and running.identity else ""  # not of a rebuilt record
    handle = model_servers.find_started(planned, besides=known)
    if handle is None or _is_replaced(planned.model_name, handle):
        return running
    if running is not None and running.handle != handle:
        server_records.set_aside(running)
    return model_servers.noted(planned, handle)


def _present(planned: ServerRecord) -> ServerRecord | None:
    """Return the same; a container that is as planned needs no engine to take a new version."""
    try:
        return of_model(planned)
    except EnvironmentFault:
        running = model_servers.running(planned.model_name)
        alone = server_records.read_replaced(planned.model_name) is None
        if running is not None and _is_as(running, planned) and alone:
            return running
        raise


def _is_replaced(model_name: str, handle: str) -> bool:
    replaced = server_records.read_replaced(model_name)
    return replaced is not None and replaced.handle == handle


def _is_as(record: ServerRecord, planned: ServerRecord) -> bool:
    wanted = (planned.identity, planned.grpc_port, planned.rest_port)
    return (record.identity, record.grpc_port, record.rest_port) == wanted


def _can_overlap(running: ServerRecord, planned: ServerRecord) -> bool:
    """Return whether clients can move from one server to the other at the same address."""
    return _place(running) == _place(planned) and _shares_its_place(running) and _shares_its_place(planned)


def _place(record: ServerRecord) -> tuple[object, ...]:
    where = (record.address, record.grpc_port, record.rest_port, bool(record.tls))
    return (record.target, record.network, *where)


def _shares_its_place(record: ServerRecord) -> bool:
    """Return whether the server can share its ports: one behind a relay, or ours, can."""
    if record.target == "process":
        return record.program == server_process.OWN_PROGRAM
    own = record.program.startswith(f"{server_image.REPOSITORY}:")
    return record.network == "relayed" or (record.network == "host" and own)


def _let_clients_in(record: ServerRecord) -> None:
    """Route clients to the running server. Leaves routing unchanged if Docker does not respond."""
    with suppress(EnvironmentFault):
        model_servers.let_clients_in(record)


def _rehearse(planned: ServerRecord, version: int, deadline: Deadline, log: Path, prove: Prove) -> None:
    """Start the new server on other ports and check that it loads the version and answers correctly."""
    with temporary_servers.started(planned, "rehearsal") as alone:
        model_servers.wait_until_live(alone, version, deadline, log)
        prove(endpoint(alone, version, started=True))


def _take_over(
    running: ServerRecord, planned: ServerRecord, version: int, deadline: Deadline, log: Path
) -> Endpoint:
    """Start the new server beside the old one, then move the old one's clients to it."""
    model_servers.wait_until_live(running, version, deadline, log)
    server_records.set_aside(running)
    record = model_servers.start_beside(planned, deadline, log)
    if record.target == "docker":
        server_container.keep_running(record.handle)
    model_servers.let_clients_in(record)
    model_servers.hand_over(running)
    return endpoint(record, version, started=True)


def endpoint(record: ServerRecord, version: int, started: bool) -> Endpoint:
    """Return where the server answers."""
    return Endpoint(
        model_name=record.model_name,
        version=version,
        grpc=record.grpc,
        rest=record.rest,
        target=record.target,
        server=record.describe(),
        started=started,
        tls=bool(record.tls),
    )


def settle(model_name: str) -> None:
    """Stop the replaced server if it still runs, and forget it."""
    present, replaced = model_servers.recorded(model_name), server_records.read_replaced(model_name)
    if replaced is not None and (present is None or present.handle != replaced.handle):
        _end(replaced, present)
    server_records.settle(model_name)


def _end(record: ServerRecord, other: ServerRecord | None) -> None:
    """Stop a server for good; where the other is beside it, clients go there first."""
    if other is not None and _can_overlap(record, other) and model_servers.is_alive(other):
        model_servers.let_clients_in(other)
        model_servers.hand_over(record)
    else:
        model_servers.stop(record)


def put_back(model_name: str, planned: ServerRecord | None = None) -> ServerRecord | None:
    """Return the server that is to serve the version before, started again if it does not run.

    Where a server was replaced, that is the replaced one; the one `planned` in its place is stopped, also
    if its start was not noted.
    """
    temporary_servers.stop(model_name, "rehearsal")
    newer = model_servers.recorded(model_name) if planned is None else of_model(planned)
    present, replaced = model_servers.recorded(model_name), server_records.read_replaced(model_name)
    if replaced is not None:
        if newer is not None and newer.handle != replaced.handle:
            _end(newer, replaced)
        server_records.write(replaced)
        present = replaced
    if present is not None:
        if model_servers.is_alive(present):
            _let_clients_in(present)
        else:
            present = model_servers.start(present)
    server_records.settle(model_name)
    return present


def stop(model_name: str, planned: ServerRecord | None = None) -> list[ServerRecord]:
    """Stop all servers of the model for good, and return them.

    The one that was replaced and not settled yet is among them, and the one `planned` in its place, also if
    its start was not noted. External servers are left alone.
    """
    temporary_servers.stop(model_name, "rehearsal")
    present = model_servers.recorded(model_name) if planned is None else of_model(planned)
    present = present or model_servers.recorded(model_name)
    replaced = server_records.read_replaced(model_name)
    stopped = {each.handle: each for each in (replaced, present) if each is not None and each.handle}
    for each in stopped.values():
        model_servers.stop(each)
    if present is not None:
        server_records.mark_stopped(present)
    server_records.settle(model_name)
    return list(stopped.values())
