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
from tasks.errors import DeployFailed
from tasks.server_image import engine
from tasks.server_records import ServerRecord

GRPC_PORT, REST_PORT = 8500, 8501
"""Ports inside the container, as the official image has them."""

_MEMORY_LIMIT = "4g"
_PIDS_LIMIT = 512
_UNPRIVILEGED = "65532:65532"
"""The user of our image, model_server."""
_READABLE_BY_OTHERS = stat.S_IROTH | stat.S_IXOTH
_RESTARTED: Any = {"Name": "unless-stopped"}


def container_name(model_name: str) -> str:
    """Return the container's name; two checkouts on one machine do not share it."""
    return f"slipway-{model_name}-{hashlib.sha256(str(home()).encode()).hexdigest()[:8]}"


def base_path_inside(model_name: str) -> str:
    """Return where the base path is mounted, as the official image expects it."""
    return f"/models/{model_name}"


def start(record: ServerRecord, flags: Sequence[str]) -> tuple[str, str]:
    """Start the server on the record's loopback ports; return container id and how to see its log.

    It is not root, whatever the image says, has a read-only root file system and read-only models, no
    capabilities, and is not removed when it ends, so that its log can be read.
    """
    client, name = engine(), container_name(record.model_name)
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
            mem_limit=_MEMORY_LIMIT,
            pids_limit=_PIDS_LIMIT,
            init=True,  # the official image's entrypoint does not pass SIGTERM on
            environment={"MODEL_NAME": record.model_name},
            labels={"slipway.model": record.model_name, "slipway.home": str(home())},
            mounts=[_models(record)],
            ports=_published(record),
        )
    except APIError as error:
        _remove(client, name)
        raise DeployFailed(
            f"container {name} of {record.program} did not start: {error.explanation}"
        ) from None
    return str(container.id), f"docker logs {name}"


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


def _models(record: ServerRecord) -> Mount:
    inside = base_path_inside(record.model_name)
    return Mount(inside, record.model_base_path, type="bind", read_only=True)


def _published(record: ServerRecord) -> dict[str, tuple[str, int]]:
    return {
        f"{GRPC_PORT}/tcp": ("127.0.0.1", record.grpc_port),
        f"{REST_PORT}/tcp": ("127.0.0.1", record.rest_port),
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
