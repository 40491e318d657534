"""Which model servers are ours: a record each in `$SLIPWAY_HOME/servers/<model>.json`, and its lock.

A server outlives the run that started it, so what is needed to find, reuse and stop it is on disk.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from configs.schema.home import servers_folder
from tasks.core.artifacts import ContainerLimits
from tasks.state import state_files
from tasks.state.state_files import StateFileDamaged

LOOPBACK = "127.0.0.1"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerRecord:
    """A server that was started for a model."""

    model_name: str
    target: str
    """`docker`, `process` or `external`."""
    program: str
    """Image tag, or path of the program."""
    identity: str
    """Hash of all that makes it this server: program, its version, flags, base path."""
    model_base_path: str
    flags: tuple[str, ...]
    """Those of `server.flags`; ports, name and base path are added when it starts."""
    grpc_port: int
    rest_port: int
    handle: str = ""
    """Container id, or `pid:boot id:start ticks`, so that a recycled pid is not mistaken for it, or the
    address of an external one; "" if stopped."""
    log: str = ""
    """File, or for a container the command that shows its log, or "" for an external server."""
    started_at: str = ""
    """ISO 8601, UTC."""
    network: str = "published"
    """Of a container: `relayed`, `published` or `host`, as `server.network` has it."""
    relay: str = ""
    """Tag of the image of the relay before a container, "" without one."""
    limits: ContainerLimits | None = None
    """Of a container: what it may take of the machine."""
    address: str = LOOPBACK
    """What a container's ports are published on; with TLS, REST is on loopback whatever it is."""
    tls: str = ""
    """File of the server's key and certificate; "" where it speaks without TLS."""
    host: str = LOOPBACK
    """Where it can be reached."""
    published_only: bool = False
    """Whether it ignores versions that no run published."""
    ops: tuple[str, ...] = ()
    """Op libraries that it loads: paths on this machine."""

    @property
    def grpc(self) -> str:
        """Address of the gRPC API."""
        return f"{self.host}:{self.grpc_port}"

    @property
    def rest(self) -> str:
        """Address of the REST API."""
        return f"http://{LOOPBACK if self.tls else self.host}:{self.rest_port}"

    def describe(self) -> str:
        """Name the server as a person knows it."""
        if self.target == "external":
            return f"external server {self.grpc}"
        kind = "container" if self.target == "docker" else "process"
        return f"{kind} {self.handle[:12] if self.target == 'docker' else self.handle.split(':')[0]}"


def _file(model_name: str, suffix: str = "") -> Path:
    return servers_folder() / f"{model_name}{suffix}.json"


_REPLACED = ".replaced"

TemporaryRole = Literal["rehearsal", "canary", "baseline"]
"""What a server that no client knows is there for, beside the model's own."""


def read(model_name: str) -> ServerRecord | None:
    """Return the record of the model's server; None where none was started, or it was stopped."""
    return _read(_file(model_name))


def read_replaced(model_name: str) -> ServerRecord | None:
    """Return the server that was stopped for the present one, while that is not yet proven."""
    return _read(_file(model_name, _REPLACED))


def _read(file: Path) -> ServerRecord | None:
    try:
        values = state_files.read(file)
        return parsed(values) if values is not None else None
    except StateFileDamaged as error:
        _log.warning("%s: ignoring this server record", error)
    except (TypeError, KeyError):
        _log.warning("%s: fields are missing, ignoring this server record", file)
    return None


def parsed(values: Mapping[str, Any]) -> ServerRecord:
    """Return the record with these fields, ignoring those of a newer release. Raises TypeError, KeyError."""
    limits = values.get("limits")
    typed = {
        "flags": tuple(values["flags"]),
        "ops": tuple(values.get("ops", ())),
        "limits": ContainerLimits(**_known(ContainerLimits, limits)) if limits is not None else None,
    }
    return ServerRecord(**{**_known(ServerRecord, values), **typed})


def _known(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def read_temporary(model_name: str, role: TemporaryRole) -> ServerRecord | None:
    """Return the server that is asked in this role, on ports of its own."""
    return _read(_file(model_name, f".{role}"))


def write_temporary(record: ServerRecord, role: TemporaryRole) -> None:
    """Record such a server, before it is started and after."""
    _write(_file(record.model_name, f".{role}"), record)


def forget_temporary(model_name: str, role: TemporaryRole) -> None:
    """Forget it."""
    state_files.remove(_file(model_name, f".{role}"))


def write(record: ServerRecord) -> None:
    """Replace the model's record, atomically."""
    _write(_file(record.model_name), record)


def set_aside(record: ServerRecord) -> None:
    """Keep the record of a server that is about to be replaced, until `settle()`."""
    _write(_file(record.model_name, _REPLACED), record)


def settle(model_name: str) -> None:
    """Forget the replaced server: the present one is proven, or is the one of before again."""
    state_files.remove(_file(model_name, _REPLACED))


def _write(file: Path, record: ServerRecord) -> None:
    state_files.write(file, asdict(record))


def mark_stopped(record: ServerRecord) -> None:
    """Record that the server was stopped on purpose; its ports stay reserved for the next one."""
    write(replace(record, handle=""))
    settle(record.model_name)


def now() -> str:
    """Return this instant as ISO 8601, UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
