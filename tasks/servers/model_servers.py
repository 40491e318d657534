"""The running server of a model, whether a container or a process: find, start, wait for, stop."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import psutil

from configs.schema.pipeline import ServerConfig
from tasks.core.artifacts import OpLibrary, Run, ServingTarget
from tasks.core.errors import DeployFailed, EnvironmentFault
from tasks.servers import external_server, model_status, relay, server_container, server_process
from tasks.state import model_versions, server_records
from tasks.state.server_records import ServerRecord, TemporaryRole

LOG_LINES_SHOWN = 20
STOP_GRACE_SECONDS = 30.0
_POLL_SECONDS = 0.05
_HAND_OVER_SECONDS = 120.0
_OWN_FLAGS: dict[str, str | bool | float] = {
    "grpc_channel_arguments": "grpc.max_connection_age_ms=20000",
    "enable_profiler": False,  # a client names the folder that a trace is written to
}
_MUTE_SECONDS = 5.0
_MUTE_TRIES = 2
_GRPC_SECONDS = 10.0
"""What gRPC is given to answer, once a version is AVAILABLE over REST."""
MUTE_GRACE_SECONDS = 5.0
"""What a server that answers nothing is given to end by itself."""


@dataclass(frozen=True)
class Deadline:
    """An instant that several waits share."""

    seconds: float
    ends: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the deadline that lies `seconds` from now."""
        return cls(seconds, time.monotonic() + seconds)

    @property
    def passed(self) -> bool:
        """Whether it is over."""
        return time.monotonic() >= self.ends


def recorded(model_name: str) -> ServerRecord | None:
    """Return the record of the model's server.

    Rebuilds a lost or damaged one from the process table, or from the labels of the container.
    """
    return (
        server_records.read(model_name)
        or server_process.find_unrecorded(model_name)
        or server_container.find_unrecorded(model_name)
    )


def running(model_name: str) -> ServerRecord | None:
    """Return the model's server if it runs. One whose engine is hidden but that answers does run."""
    record = recorded(model_name)
    return record if record is not None and is_alive(record) else None


def is_alive(record: ServerRecord) -> bool:
    """Return whether the server still runs."""
    if not record.handle:
        return False
    if record.target == "process":
        return server_process.find(record.handle) is not None
    if record.target == "external":
        return model_status.answers(record.rest)
    try:
        return server_container.is_running(record)
    except EnvironmentFault:
        return bool(model_status.version_statuses(record.rest, record.model_name))


def is_mute(record: ServerRecord) -> bool:
    """Return whether a server of ours accepts connections and leaves requests unanswered, on either port.

    Each port is tried again before it counts as silent. A server that is still starting, or whose ports
    refuse connections, is not mute.
    """
    if record.target == "external":
        return False
    if all(model_status.is_silent(record.rest, _MUTE_SECONDS) for _ in range(_MUTE_TRIES)):
        return True
    return all(_grpc_response(record, _MUTE_SECONDS) == "silent" for _ in range(_MUTE_TRIES))


def _grpc_response(record: ServerRecord, timeout_seconds: float) -> str:
    from tasks.servers import grpc_channels  # gRPC takes long to import, and `slipway plan` asks nobody

    return grpc_channels.response(record.grpc, record.model_name, timeout_seconds, bool(record.tls))


def identity(
    kind: str, server: ServerConfig, program: str, base: Path, libraries: Sequence[OpLibrary] = ()
) -> str:
    """Return a hash of all that makes the server what it is; when it changes, the server is replaced."""
    what = server_process.identity(server.executable) if kind == "process" else program
    network = [server.network] if kind == "docker" and server.network != "published" else []
    limits = [server.limits.model_dump_json(), str(server.address)] if kind == "docker" else []
    keys = [_digest(Path(server.ssl_config_file))] if server.ssl_config_file else []
    only = ["published only"] if kind != "external" and server.serves_published_only else []
    ops = [f"{each.path} {each.sha256}" for each in libraries]
    text = "\n".join([kind, what, str(base), *network, *limits, *keys, *only, *ops, *own_flags(server)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def own_flags(server: ServerConfig) -> list[str]:
    """Return `server.flags` as tensorflow_model_server takes them: `--name=value`, true and false.

    Where another can take its place, it tells clients to connect anew now and then. It has no profiler
    unless `server.flags` says so.
    """
    is_alone = server.executable or (server.image and server.network != "relayed")
    given = server.flags if is_alone else {**_OWN_FLAGS, **server.flags}
    return [f"--{name}={_flag_value(value)}" for name, value in sorted(given.items())]


def _flag_value(value: str | bool | float) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def planned(target: ServingTarget, run: Run) -> ServerRecord:
    """Return the record of the server that `target` asks for, not started yet."""
    return ServerRecord(
        model_name=run.pipeline,
        target=target.kind,
        program=target.program,
        identity=target.identity,
        model_base_path=str(run.model_base_path),
        flags=target.flags,
        network=target.network,
        limits=target.limits,
        address=target.address,
        tls=target.tls,
        relay=target.relay,
        host=target.host,
        published_only=target.published_only,
        ops=target.ops,
        grpc_port=target.grpc_port,
        rest_port=target.rest_port,
    )


def start(record: ServerRecord) -> ServerRecord:
    """Start the server that `record` describes, note it, and return the record with its handle.

    Raises DeployFailed where it cannot be started; whether it comes up is for `wait_until_live`.
    """
    _list_published(record)
    return noted(record, _kind(record).start(record, flags_of(record)))


def _list_published(record: ServerRecord) -> None:
    if record.published_only:
        model_versions.list_published(Path(record.model_base_path))


def _kind(record: ServerRecord) -> ModuleType:
    return {"docker": server_container, "process": server_process, "external": external_server}[record.target]


def start_temporary(record: ServerRecord, role: TemporaryRole) -> ServerRecord:
    """Start the server under a name that is not the model's present one's; it is not noted."""
    handle = _kind(record).start(record, flags_of(record), role=role)
    return replace(record, handle=handle, log=_kind(record).log_place(record, role))


def start_beside(record: ServerRecord, deadline: Deadline, log_copy: Path) -> ServerRecord:
    """Start the server beside one that has the clients; return when it can answer too.

    In the machine's network both take connections then; behind a relay, `let_clients_in` lets them come.
    Raises DeployFailed, with the last lines of its log.
    """
    _list_published(record)
    started = noted(record, _kind(record).start(record, flags_of(record), beside=True))
    while not _kind(record).can_answer(started):
        if deadline.passed or not is_alive(started):
            how = f"could not answer within {deadline.seconds:g} s" if deadline.passed else "died"
            raise failed(started, f"the server that is to take over {how}", log_copy)
        time.sleep(_POLL_SECONDS)
    return started


def let_clients_in(record: ServerRecord) -> None:
    """Route new clients to this server, if it has a relay. Idempotent."""
    if record.target == "docker":
        server_container.let_clients_in(record)


def noted(record: ServerRecord, handle: str) -> ServerRecord:
    """Record that the server runs as `handle`, and return the record."""
    log = _kind(record).log_place(record)
    started = replace(record, handle=handle, log=log, started_at=server_records.now())
    server_records.write(started)
    return started


def flags_of(record: ServerRecord) -> Sequence[str]:
    """Return what the server is started with.

    Only what the official tensorflow_model_server takes, so that it can stand in for ours.
    """
    ports, base = (record.grpc_port, record.rest_port), record.model_base_path
    if record.target == "docker" and record.network != "host":
        ports = (relay.GRPC_PORT, relay.REST_PORT)
    if record.target == "docker":
        base = server_container.base_path_inside(record.model_name)
    return [
        f"--port={ports[0]}",
        f"--rest_api_port={ports[1]}",
        f"--model_name={record.model_name}",
        f"--model_base_path={base}",
        *(_inside(flag, record) for flag in record.flags),
    ]


def _inside(flag: str, record: ServerRecord) -> str:
    """Return the flag as the server sees files: in a container the keys are mounted elsewhere."""
    if record.target == "docker" and flag == f"--ssl_config_file={record.tls}":
        return f"--ssl_config_file={server_container.TLS_INSIDE}"
    return flag


def find_started(record: ServerRecord, besides: str = "", role: TemporaryRole | None = None) -> str | None:
    """Return the handle of a server, another one than `besides`, whose start was not noted."""
    return _kind(record).find_started(record, flags_of(record), besides, role)  # type: ignore[no-any-return]


def stop(record: ServerRecord, grace_seconds: float = STOP_GRACE_SECONDS) -> None:
    """Drain and end the server; its record stays. Raises EnvironmentFault where no engine answers.

    One that somebody else runs goes on.
    """
    if record.target == "process":
        server_process.stop(record.handle, grace_seconds)
    elif record.target == "docker":
        server_container.stop(record, grace_seconds)


def hand_over(record: ServerRecord) -> None:
    """Move the server's clients to the one beside it, and end it; its record stays."""
    _kind(record).hand_over(record, _HAND_OVER_SECONDS)
    stop(record)


def server_log(record: ServerRecord) -> str:
    """Return all that the server printed; what an external one prints, only who runs it can see."""
    if record.target == "external":
        return ""
    if record.target == "process":
        log = Path(record.log)
        return log.read_text(errors="replace") if log.is_file() else ""
    try:
        return server_container.log(record.handle)
    except EnvironmentFault as error:
        return f"(no log: {error.message})"


def wait_until_live(record: ServerRecord, version: int, deadline: Deadline, log_copy: Path) -> None:
    """Return when `version` is what the server answers with.

    Raises DeployFailed, with the last lines of the server's log, when it dies, when it says that it
    cannot load that version, or at the deadline. Then all of its log is in `log_copy`, which outlives it.
    """
    while (problem := _problem(record, version, deadline)) is not None:
        if problem:
            raise failed(record, problem, log_copy)
        time.sleep(_POLL_SECONDS)


def failed(record: ServerRecord, problem: str, log_copy: Path) -> DeployFailed:
    """Return the error that shows the last lines of the server's log; all of it is in `log_copy`."""
    if record.target == "external":
        hint = f"see its own log; does it serve this model, of {record.model_base_path}?"
        return DeployFailed(f"{record.describe()}: {problem}", hint)
    text = server_log(record)
    log_copy.parent.mkdir(parents=True, exist_ok=True)
    log_copy.write_text(text)
    last_lines = "\n".join(text.splitlines()[-LOG_LINES_SHOWN:])
    return DeployFailed(f"{record.describe()}: {problem}", f"its log: {log_copy}\nlast lines:\n{last_lines}")


def answers(record: ServerRecord, deadline: Deadline) -> bool:
    """Return whether the server serves any version over REST and gRPC; until the deadline it may load one.

    gRPC gets a few seconds from when REST reports a version.
    """
    while True:
        statuses = model_status.version_statuses(record.rest, record.model_name)
        if any(status.state == "AVAILABLE" for status in statuses):
            return _grpc_answers(record, min(deadline.ends, time.monotonic() + _GRPC_SECONDS))
        if deadline.passed or (statuses and all(status.error for status in statuses)):
            return False
        time.sleep(_POLL_SECONDS)


def _grpc_answers(record: ServerRecord, ends: float) -> bool:
    while True:
        if _grpc_response(record, max(1.0, ends - time.monotonic())) == "answers":
            return True
        if time.monotonic() >= ends:
            return False
        time.sleep(_POLL_SECONDS)


def _problem(record: ServerRecord, version: int, deadline: Deadline) -> str | None:
    """Return None if the version answers, "" if it may come, and otherwise what is wrong."""
    statuses = model_status.version_statuses(record.rest, record.model_name)
    by_number = {status.version: status for status in statuses}
    available = [status.version for status in statuses if status.state == "AVAILABLE"]
    is_live = max(available, default=None) == version
    if is_live and (record.target == "external" or _grpc_response(record, _GRPC_SECONDS) == "answers"):
        return None
    if version in by_number and by_number[version].error:
        return f"the server cannot load version {version}: {by_number[version].error}"
    if record.target != "external" and not statuses and not is_alive(record):
        return f"the server died while loading version {version}"
    if deadline.passed:
        seen = ", ".join(f"{status.version} {status.state}" for status in statuses) or "no answer"
        mute = "; no answer over gRPC" if is_live else ""
        return f"version {version} was not served within {deadline.seconds:g} s ({seen}{mute})"
    return ""


def choose_port(wanted: int, before: int | None, taken: int | None = None) -> int:
    """Return the port to serve on: `wanted`, or for 0 the one of before if free, else any free one."""
    if wanted:
        return wanted
    if before and before != taken and not port_holder(before):
        return before
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
        # Asked while the probe still has this port, the kernel gives another one.
        return port if port != taken and _claimed(port) else choose_port(0, None, taken)


_claims: list[socket.socket] = []
"""Each has a name that says, until this process ends, that it chose a port, where nobody may listen yet."""


def _claimed(port: int) -> bool:
    """Reserve the port on this machine; return False if it is reserved already."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0slipway-port-{port}")  # abstract: the kernel forgets it with the process
    except OSError:
        claim.close()
        return False
    _claims.append(claim)
    return True


def port_holder(port: int, address: str = server_records.LOOPBACK) -> str | None:
    """Return who listens on a port of an address of this machine, None where nobody does."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return _listener(port)
    return None


def _listener(port: int) -> str:
    try:
        for connection in psutil.net_connections(kind="tcp"):
            local = connection.laddr
            if connection.status == psutil.CONN_LISTEN and local and local.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        pass
    return "another program"
