"""The images that servers and relays run in: ours are built when inputs changed, tagged by a hash of them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.utils import parse_repository_tag

from tasks.core.errors import EnvironmentFault, ImageUnavailable

REPOSITORY = "slipway-model-server"
RELAY_REPOSITORY = "slipway-relay"
PUBLIC_BASE = "python:3.11-slim-bookworm"
LOCAL_BASE = "slipway-base:bookworm"
"""Made by `make base-image` from Debian packages, for machines that reach no image registry."""

Tell = Callable[[str], None]

_CONTAINERS = Path(__file__).resolve().parents[2] / "containers"
CONTEXT = _CONTAINERS / "model_server"
RELAY_CONTEXT = _CONTAINERS / "relay"


def engine() -> docker.DockerClient:
    """Return a client of the Docker engine. Raises EnvironmentFault where none answers."""
    try:
        client = docker.from_env(timeout=60)
        client.ping()
    except DockerException as error:
        # The SDK's text is a nest of exceptions; the innermost quoted words are the operating system's.
        reason = (re.findall(r"'([^']+)'", str(error)) or [str(error)])[-1]
        raise EnvironmentFault(
            f"no Docker engine answers: {reason}",
            "start one, or set deployment.target to process (or auto)",
        ) from None
    return client


def find(client: docker.DockerClient, container: str) -> Container | None:
    """Return the container of this id or name, running or not; none if the name is empty, as after a stop."""
    try:
        return client.containers.get(container) if container else None
    except NotFound:
        return None


def ensure(client: docker.DockerClient, image: str | None, tell: Tell) -> str:
    """Return the tag of an image that can be started: `image`, or ours, pulled or built if need be.

    `tell` gets a line for each step of a build, which takes a minute or two.

    Raises ImageUnavailable where there is neither a base image here nor a registry, and
    EnvironmentFault, with the last lines, where the build fails.
    """
    if image is not None:
        _find_or_pull(client, image, "name an image that is here, or remove server.image")
        return image
    return _built(client, REPOSITORY, CONTEXT, tell)


def ensure_relay(client: docker.DockerClient, tell: Tell) -> str:
    """Return the tag of the relay's image, built if need be. Raises as `ensure` does."""
    try:
        return _built(client, RELAY_REPOSITORY, RELAY_CONTEXT, tell)
    except EnvironmentFault as error:
        hint = f"{error.hint}\nserver.network: published needs no relay; a changed server leaves a gap then"
        raise type(error)(error.message, hint) from None


def _built(client: docker.DockerClient, repository: str, context: Path, tell: Tell) -> str:
    base = _base_image(client)
    tag = f"{repository}:{_inputs_hash(client, base, context)}"
    if not _is_here(client, tag):
        _build(client, base, tag, context, tell)
    return tag


def _is_here(client: docker.DockerClient, image: str) -> bool:
    try:
        client.images.get(image)
    except ImageNotFound:
        return False
    return True


def _base_image(client: docker.DockerClient) -> str:
    chosen = os.environ.get("SLIPWAY_BASE_IMAGE")
    if chosen is None and _is_here(client, LOCAL_BASE):
        return LOCAL_BASE
    base = chosen or PUBLIC_BASE
    _find_or_pull(client, base, "`make base-image` makes one from Debian packages")
    return base


def _find_or_pull(client: docker.DockerClient, image: str, hint: str) -> None:
    if _is_here(client, image):
        return
    try:
        repository, tag = parse_repository_tag(image)
        client.images.pull(repository, tag or "latest")
    except (APIError, DockerException) as error:
        reason = _cause(str(getattr(error, "explanation", None) or error))
        raise ImageUnavailable(f"there is no image {image}, and {reason}", hint) from None


def _cause(explanation: str) -> str:
    """Return in a few words why a pull failed; engines answer with a chain of lookups and addresses."""
    if re.search(r"\b(lookup|dial tcp|proxyconnect|timeout|deadline exceeded|EOF|tls|x509)\b", explanation):
        return "no image registry can be reached"
    return f"pulling it failed: {explanation.strip().splitlines()[0].rpartition(': ')[2][:100]}"


def _inputs_hash(client: docker.DockerClient, base: str, context: Path) -> str:
    digest = hashlib.sha256(str(client.images.get(base).id).encode())
    for file in sorted(file for file in context.rglob("*") if file.is_file() and file.suffix != ".pyc"):
        digest.update(str(file.relative_to(context)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def _build(client: docker.DockerClient, base: str, tag: str, context: Path, tell: Tell) -> None:
    """Build with the classic builder, which every engine has; its steps are told while it goes."""
    printed: list[str] = []
    stream = client.api.build(
        path=str(context),
        tag=tag,
        buildargs={"BASE_IMAGE": base},
        network_mode="host",  # where a proxy inspects TLS, only the host's network has it
        rm=True,
        forcerm=True,
        decode=True,
    )
    for chunk in stream:
        printed += chunk.get("stream", "").splitlines()
        if printed and printed[-1].startswith("Step "):
            tell(f"building {tag}: {printed[-1][:60]}")
        if "error" in chunk:
            hint = "last lines of the build:\n" + "\n".join(printed[-15:])
            raise EnvironmentFault(f"building {tag} on {base} failed: {chunk['error']}", hint)
