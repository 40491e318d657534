"""The model server in a Docker container: start, look after, stop."""

from __future__ import annotations

import json
import shlex
import stat
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, DockerException
from docker.models.containers import Container
from docker.types import Mount

from configs.schema.home import home
from tasks.core.artifacts import ContainerLimits
from tasks.core.errors import DeployFailed, EnvironmentFault
from tasks.servers import model_status, relay
from tasks.servers.server_image import engine, find
from tasks.state import server_records
from tasks.state.server_records import ServerRecord, TemporaryRole

TLS_INSIDE = "/tls/ssl_config"
"""Where the server's key and certificate are mounted."""

_LIMITS_OF_OLD = ContainerLimits(memory_mb=4096, cpus=1, pids=512)
"""Of a server that was noted by a release whose records had no limits."""
_UNPRIVILEGED = 65532
"""The user and group of our image, model_server."""
_OTHER_UNPRIVILEGED = 65533
"""For models that belong to user 65532, as the pipeline's image writes them."""
_RECORD = "slipway.record"
"""Label with the record of the server, as JSON, without its id."""
_ENGINE_SECONDS = 10
_RESTARTED: Any = {"Name": "unless-stopped"}
_NOT_RESTARTED: Any = {"Name": "no"}
_LOOK_SECONDS = 0.5


def container_name(model_name: str) -> str:
    """Return the container's name; two checkouts on one machine do not share it."""
    return f"slipway-{model_name}-{relay.of_home()}"


def base_path_inside(model_name: str) -> str:
    """Return where the base path is mounted, as the official image expects it."""
    return f"/models/{model_name}"


def _name(record: ServerRecord, role: TemporaryRole | None = None) -> str:
    """Return the container's name; of two that run beside each other, each has its own."""
    name = container_name(record.model_name)
    if role is not None:
        return f"{name}-{role}"
    return name if record.network == "published" else f"{name}-{record.identity[:6]}"


def log_place(record: ServerRecord, role: TemporaryRole | None = None) -> str:
    """Return the command that shows what the server prints."""
    return f"docker logs {_name(record, role)}"


def find_started(
    record: ServerRecord, _flags: Sequence[str], besides: str = "", role: TemporaryRole | None = None
) -> str | None:
    """Return the id of a container that runs and whose start was not noted; None where there is none.

    In a published network a model has one container, which the next start replaces.
    """
    if record.network == "published" and role is None:
        return None
    container = find(engine(), _name(record, role))
    running = container is not None and container.status == "running" and container.id != besides
    return str(container.id) if container is not None and running else None


def can_answer(record: ServerRecord) -> bool:
    """Return whether a server that was started beside another one can answer.

    Behind a relay it is asked; in the machine's network our own says so itself, when it listens.
    """
    if record.network != "relayed":
        return "listening: " in log(record.handle)
    statuses = model_status.parsed(relay.server_status(record.model_name, _name(record)))
    return any(status.state == "AVAILABLE" for status in statuses)


def let_clients_in(record: ServerRecord) -> None:
    """Route the relay's new connections, if there is a relay, to this server."""
    if record.network == "relayed":
        relay.stand_before(record, _name(record))


def start(
    record: ServerRecord, flags: Sequence[str], beside: bool = False, role: TemporaryRole | None = None
) -> str:
    """Start the server on the record's address and ports; return the container's id.

    With `beside` another one is there already: behind a relay, which goes on passing clients to that one, or
    at the same ports, on which our own server listens too once it can answer.

    It is not root, whatever the image says, has a read-only root file system and read-only models, no
    capabilities, and is not removed when it ends, so that its log can be read.
    """
    client, name = engine(), _name(record, role)
    runs_as = user(Path(record.model_base_path), record.tls)
    _remove(client, name)
    if record.network == "relayed":
        relay.have_network(client)
    try:
        container = client.containers.run(
            record.program,
            list(flags),
            name=name,
            detach=True,
            user=runs_as,
            read_only=True,
            tmpfs={"/tmp": "size=256m"},  # noqa: S108 (inside the container)
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            init=True,  # the official image's entrypoint does not pass SIGTERM on
            environment=_environment(record, beside, role),
            labels=_labels(record, role),
            mounts=_mounts(record),
            **_network(record),
            **_limits(record),
        )
    except APIError as error:
        _remove(client, name)
        raise DeployFailed(
            f"container {name} of {record.program} did not start: {error.explanation}"
        ) from None
    if not beside and role is None:
        _let_in_or_end(record, container)
    return str(container.id)


def _labels(record: ServerRecord, role: TemporaryRole | None) -> dict[str, str]:
    """Return what tells whose the container is and, if clients ask it, all of its record."""
    mine = {"slipway.model": record.model_name, "slipway.home": str(home())}
    return mine if role is not None else {**mine, _RECORD: json.dumps(asdict(record))}


def find_unrecorded(model_name: str) -> ServerRecord | None:
    """Return the record of the model's server, rebuilt from its container's labels; None if none runs.

    Of two that run beside each other, it is the one that the relay passes clients to, else the newer one.
    """
    filters: Any = {"label": [f"slipway.model={model_name}", f"slipway.home={home()}", _RECORD]}
    try:
        client = docker.from_env(timeout=_ENGINE_SECONDS)
        running = client.containers.list(filters=filters)
        chosen = relay.passes_to(model_name) if len(running) > 1 else ""
    except (DockerException, OSError, EnvironmentFault):  # requests' timeouts are OSErrors
        return None
    # The engine lists the newest first.
    named = [each for each in running if each.name == chosen] or running
    return _rebuilt(named[0]) if named else None


def _rebuilt(container: Container) -> ServerRecord | None:
    try:
        record = server_records.parsed(json.loads(container.labels[_RECORD]))
    except (TypeError, KeyError, ValueError):
        return None  # of another release
    started = str(container.attrs["Created"])[:19] + "+00:00"
    return replace(record, handle=str(container.id), log=log_place(record), started_at=started)


def _let_in_or_end(record: ServerRecord, container: Container) -> None:
    try:
        let_clients_in(record)
    except BaseException:
        container.remove(force=True)
        raise


def user(base: Path, keys: str = "") -> str:
    """Return as whom the server runs, `uid:gid`: never the owner of the models, who alone reads the answers.

    Its group is that of the models, so that a private key can be readable for the group alone; for models
    of root, nobody's. Raises EnvironmentFault if it could not read the models, or the file with the keys.
    """
    owner = base.stat()
    uid = _OTHER_UNPRIVILEGED if owner.st_uid == _UNPRIVILEGED else _UNPRIVILEGED
    gid = owner.st_gid if owner.st_uid and owner.st_gid else _UNPRIVILEGED
    needed = {base: stat.S_IROTH | stat.S_IXOTH, **({Path(keys): stat.S_IROTH} if keys else {})}
    for path, bits in needed.items():
        found = path.stat()
        group = found.st_mode >> 3 if found.st_gid == gid else 0
        if (found.st_mode | group) & bits != bits:
            mode = "rx" if path == base else "r"
            who = "g" if found.st_gid == gid else "o"
            raise EnvironmentFault(
                f"{path} cannot be read by the model server: in its container it is {uid}:{gid}",
                f"chmod {who}+{mode} {shlex.quote(str(path))}",
            )
    return f"{uid}:{gid}"


def _mounts(record: ServerRecord) -> list[Mount]:
    mounted = {base_path_inside(record.model_name): record.model_base_path}
    if record.tls:
        mounted[TLS_INSIDE] = record.tls
    mounted |= _ops_inside(record)
    return [Mount(inside, outside, type="bind", read_only=True) for inside, outside in mounted.items()]


def _ops_inside(record: ServerRecord) -> dict[str, str]:
    """Return where each op library is mounted, and its path on this machine."""
    return {f"/ops/{Path(path).name}": path for path in record.ops}


def _environment(record: ServerRecord, beside: bool, role: TemporaryRole | None) -> dict[str, str]:
    environment = {"MODEL_NAME": record.model_name, "MODEL_SERVER_RELOAD": "false"}
    if record.published_only and role is None:
        environment["MODEL_SERVER_PUBLISHED_ONLY"] = "true"
    if record.ops:
        environment["MODEL_SERVER_OPS"] = ":".join(_ops_inside(record))
    if record.network == "host":
        environment["MODEL_SERVER_HOST"] = "127.0.0.1"
        if beside:
            environment["MODEL_SERVER_SHARE_PORTS"] = "true"
    return environment


def _network(record: ServerRecord) -> dict[str, Any]:
    if record.network == "host":
        return {"network_mode": "host"}
    if record.network == "relayed":
        return {"network": relay.network()}
    return {"ports": relay.ports(record)}


def _limits(record: ServerRecord) -> dict[str, Any]:
    limits = record.limits or _LIMITS_OF_OLD
    memory = f"{limits.memory_mb}m"
    return {
        "mem_limit": memory,
        "memswap_limit": memory,
        "nano_cpus": round(limits.cpus * 1e9),
        "pids_limit": limits.pids,
    }


def keep_running(container_id: str) -> None:
    """Set the restart policy: restart the container after a crash and after a reboot.

    Only for a server that was seen to work: one that dies while loading must stay dead, to be seen.
    """
    container = find(engine(), container_id)
    if container is not None:
        container.update(restart_policy=_RESTARTED)


def is_running(record: ServerRecord) -> bool:
    """Return whether the container and its relay run. Raises EnvironmentFault if no engine answers."""
    container = find(engine(), record.handle)
    if container is None or container.status != "running":
        return False
    return record.network != "relayed" or relay.is_running(record.model_name)


def log(container_id: str) -> str:
    """Return all that the server printed. Raises EnvironmentFault if the engine does not give it."""
    try:
        container = find(engine(), container_id)
        return container.logs().decode(errors="replace") if container else ""
    except (DockerException, OSError) as error:
        raise EnvironmentFault(f"the Docker engine does not give the container's log: {error}") from error


def hand_over(record: ServerRecord, seconds: float) -> None:
    """Drain the server; return when it has no clients, or after the deadline.

    Behind a relay no new ones come, and those that there are reach their greatest age. In the machine's
    network it is told by SIGUSR1, and ends.
    """
    container = find(engine(), record.handle)
    if container is None:
        return
    if record.network == "relayed":
        _see_clients_leave(record, seconds)
        return
    container.update(restart_policy=_NOT_RESTARTED)  # it is to end by itself
    try:
        container.kill(signal="SIGUSR1")
        container.wait(timeout=seconds)
    except (APIError, OSError):  # it has ended, or has not in time
        pass


def _see_clients_leave(record: ServerRecord, seconds: float) -> None:
    ends = time.monotonic() + seconds
    while relay.connections(record.model_name, _name(record)) and time.monotonic() < ends:
        time.sleep(_LOOK_SECONDS)


def stop(record: ServerRecord, grace_seconds: float) -> None:
    """Stop by SIGTERM, which drains it, then by SIGKILL, and remove the container.

    A relay that passes clients on to it goes too.
    """
    container = find(engine(), record.handle)
    if container is not None:
        container.stop(timeout=int(grace_seconds))
        container.remove(force=True)
    if record.network == "relayed" and relay.passes_to(record.model_name) in ("", _name(record)):
        relay.stop(record.model_name)


def _remove(client: docker.DockerClient, name: str) -> None:
    container = find(client, name)
    if container is not None:
        container.remove(force=True)
