"""The model server in a Docker container: start, look after, stop."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, NotFound
from docker.models.containers import Container
from docker.types import Mount

from configs.home import home
from tasks.artifacts import ContainerLimits
from tasks.errors import DeployFailed
from tasks.servers.server_image import engine
from tasks.servers.server_records import LOOPBACK, LoneRole, ServerRecord

GRPC_PORT, REST_PORT = 8500, 8501
"""Ports inside the container, as the official image has them."""

TLS_INSIDE = "/tls/ssl_config"
"""Where the server's key and certificate are mounted."""

_LIMITS_OF_OLD = ContainerLimits(memory_mb=4096, cpus=1, pids=512)
"""Of a server that was noted by a release whose records had no limits."""
_UNPRIVILEGED = "65532:65532"
"""The user of our image, model_server."""
_READABLE_BY_OTHERS = stat.S_IROTH | stat.S_IXOTH
_RESTARTED: Any = {"Name": "unless-stopped"}
_NOT_RESTARTED: Any = {"Name": "no"}


def container_name(model_name: str) -> str:
    """Return the container's name; two checkouts on one machine do not share it."""
    return f"slipway-{model_name}-{hashlib.sha256(str(home()).encode()).hexdigest()[:8]}"


def base_path_inside(model_name: str) -> str:
    """Return where the base path is mounted, as the official image expects it."""
    return f"/models/{model_name}"


def _name(record: ServerRecord, role: LoneRole | None = None) -> str:
    """Return the container's name; of two that run beside each other, each has its own."""
    name = container_name(record.model_name)
    if role is not None:
        return f"{name}-{role}"
    return name if record.network == "published" else f"{name}-{record.identity[:6]}"


def log_place(record: ServerRecord, role: LoneRole | None = None) -> str:
    """Return the command that shows what the server prints."""
    return f"docker logs {_name(record, role)}"


def find_started(
    record: ServerRecord, _flags: Sequence[str], besides: str = "", role: LoneRole | None = None
) -> str | None:
    """Return the id of a container that runs and whose start was not noted; None where there is none.

    In a published network a model has one container, which the next start replaces.
    """
    if record.network == "published" and role is None:
        return None
    container = find(engine(), _name(record, role))
    running = container is not None and container.status == "running" and container.id != besides
    return str(container.id) if container is not None and running else None


def listens_on(container_id: str, _ports: Sequence[int]) -> bool:
    """Say whether our server in the container can be asked on its ports: it says so itself."""
    return "listening: " in log(container_id)


def start(
    record: ServerRecord, flags: Sequence[str], share_ports: bool = False, role: LoneRole | None = None
) -> str:
    """Start the server on the record's address and ports; return the container's id.

    With `share_ports` our own server listens beside one that does already, once it can answer.

    It is not root, whatever the image says, has a read-only root file system and read-only models, no
    capabilities, and is not removed when it ends, so that its log can be read.
    """
    client, name = engine(), _name(record, role)
    user = _user(Path(record.model_base_path))
    _remove(client, name)
    try:
        container = client.containers.run(
            record.program,
            list(flags),
            name=name,
            detach=True,
            user=user,
            read_only=True,
            tmpfs={"/tmp": "size=256m"},  # noqa: S108 (inside the container)
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            init=True,  # the official image's entrypoint does not pass SIGTERM on
            environment=_environment(record, share_ports),
            labels={"slipway.model": record.model_name, "slipway.home": str(home())},
            mounts=_mounts(record),
            **_network(record),
            **_limits(record),
        )
    except APIError as error:
        _remove(client, name)
        raise DeployFailed(
            f"container {name} of {record.program} did not start: {error.explanation}"
        ) from None
    return str(container.id)


def _user(base: Path) -> str:
    """Return as whom the server runs: the owner of the models, or where that is root, nobody's id."""
    owner = base.stat()
    if owner.st_uid:
        return f"{owner.st_uid}:{owner.st_gid}"
    if owner.st_mode & _READABLE_BY_OTHERS != _READABLE_BY_OTHERS:
        raise DeployFailed(
            f"{base} belongs to root and is closed to others: a server that is not root cannot read it",
            f"chmod o+rx {base}",
        )
    return _UNPRIVILEGED


def _mounts(record: ServerRecord) -> list[Mount]:
    mounted = {base_path_inside(record.model_name): record.model_base_path}
    if record.tls:
        mounted[TLS_INSIDE] = record.tls
    return [Mount(inside, outside, type="bind", read_only=True) for inside, outside in mounted.items()]


def _environment(record: ServerRecord, share_ports: bool) -> dict[str, str]:
    environment = {"MODEL_NAME": record.model_name}
    if record.network == "host":
        environment["MODEL_SERVER_HOST"] = "127.0.0.1"
    if share_ports:
        environment["MODEL_SERVER_SHARE_PORTS"] = "true"
    return environment


def _network(record: ServerRecord) -> dict[str, Any]:
    if record.network == "host":
        return {"network_mode": "host"}
    ports = {
        f"{GRPC_PORT}/tcp": (record.address, record.grpc_port),
        # The official server's REST API knows no TLS.
        f"{REST_PORT}/tcp": (LOOPBACK if record.tls else record.address, record.rest_port),
    }
    return {"ports": ports}


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
    """Have the engine start the container again when it crashes and when the machine comes back.

    Only for a server that was seen to work: one that dies while loading must stay dead, to be seen.
    """
    container = find(engine(), container_id)
    if container is not None:
        container.update(restart_policy=_RESTARTED)


def find(client: docker.DockerClient, container_id: str) -> Container | None:
    """Return the container, running or not."""
    try:
        return client.containers.get(container_id)
    except NotFound:
        return None


def is_running(container_id: str) -> bool:
    """Say whether the container runs. Raises EnvironmentFault where the engine does not answer."""
    container = find(engine(), container_id)
    return container is not None and container.status == "running"


def log(container_id: str) -> str:
    """Return all that the server printed."""
    container = find(engine(), container_id)
    return container.logs().decode(errors="replace") if container else ""


def hand_over(container_id: str, seconds: float) -> None:
    """Have the server let its clients go, by SIGUSR1, and end; return when it has, or after so long."""
    container = find(engine(), container_id)
    if container is None:
        return
    container.update(restart_policy=_NOT_RESTARTED)  # it is to end by itself
    try:
        container.kill(signal="SIGUSR1")
        container.wait(timeout=seconds)
    except (APIError, OSError):  # it has ended, or has not in time
        pass


def stop(container_id: str, grace_seconds: float) -> None:
    """Stop by SIGTERM, which drains it, then by SIGKILL, and remove the container."""
    container = find(engine(), container_id)
    if container is not None:
        container.stop(timeout=int(grace_seconds))
        container.remove(force=True)


def _remove(client: docker.DockerClient, name: str) -> None:
    container = find(client, name)
    if container is not None:
        container.remove(force=True)
