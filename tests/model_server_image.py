"""The server's image, built once, and containers of it, for tests that ask them what they ask the process.

PYTEST_DONT_REWRITE: model_server_fixtures registers it, after test modules have imported it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import docker
import docker.errors
import pytest
from free_ports import free_port
from model_server_fixtures import NAME, Endpoint, Models, wait_until

CONTAINERS = Path(__file__).resolve().parent.parent / "containers"
BASE_IMAGE = "slipway-base:bookworm"
HARDENED: dict[str, Any] = {
    "read_only": True,
    "tmpfs": {"/tmp": ""},
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
}


def unavailable(reason: str) -> NoReturn:
    if os.environ.get("SLIPWAY_REQUIRE_DOCKER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """Docker, where an engine answers."""
    try:
        client = docker.from_env()
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        unavailable(f"no Docker engine answers: {error}")
    yield client
    client.close()


@pytest.fixture(scope="session")
def image(engine: docker.DockerClient) -> str:
    """Build the server's image; its tag is a hash of what goes in, so that this is done once."""
    try:
        base = engine.images.get(BASE_IMAGE)
    except docker.errors.ImageNotFound:
        made = subprocess.run([CONTAINERS / "base" / "build.sh"], capture_output=True, text=True)
        if made.returncode:
            unavailable(f"no base image {BASE_IMAGE}, and it cannot be made: {made.stderr.strip()[-300:]}")
        base = engine.images.get(BASE_IMAGE)
    context = CONTAINERS / "model_server"
    digest = hashlib.sha256(str(base.id).encode())
    for path in sorted(context.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(str(path.relative_to(context)).encode() + b"\0" + path.read_bytes() + b"\0")
    tag = f"slipway-model-server-test:{digest.hexdigest()[:16]}"
    try:
        engine.images.get(tag)
    except docker.errors.ImageNotFound:
        engine.images.build(
            path=str(context), tag=tag, buildargs={"BASE_IMAGE": BASE_IMAGE}, network_mode="host", rm=True
        )
    return tag


@pytest.fixture(scope="session")
def models_directory(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as /models that the image's user may read."""
    directory = tmp_path_factory.mktemp("models")
    models.publish(directory / NAME, 1)
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return directory


class Container(Endpoint):
    """A running container of the image."""

    def __init__(self, engine: docker.DockerClient, image: str, directory: Path, *flags: str) -> None:
        super().__init__(free_port(), free_port())
        self.container = engine.containers.run(
            image,
            [*flags],
            detach=True,
            environment={"MODEL_NAME": NAME},
            ports={"8500/tcp": ("127.0.0.1", self.port), "8501/tcp": ("127.0.0.1", self.rest_port)},
            volumes={str(directory): {"bind": "/models", "mode": "ro"}},
            **HARDENED,
        )

    @property
    def log(self) -> str:
        """What the server has written so far."""
        return str(self.container.logs().decode())

    @property
    def is_alive(self) -> bool:
        """Whether the container runs, and was never started anew."""
        self.container.reload()
        return bool(self.container.attrs["State"]["Running"])

    @property
    def health(self) -> str:
        """Docker's view: starting, healthy or unhealthy."""
        self.container.reload()
        return str(self.container.attrs["State"]["Health"]["Status"])

    def run(self, *command: str) -> tuple[int, str]:
        """Run a command inside: its exit code, and what it wrote."""
        code, output = self.container.exec_run(list(command))
        assert code is not None
        assert isinstance(output, bytes)
        return code, output.decode()

    def wait_until_listening(self) -> None:
        wait_until(lambda: "listening" in self.log, "the server in the container", lambda: self.log)


@pytest.fixture(scope="session")
def container(engine: docker.DockerClient, image: str, models_directory: Path) -> Iterator[Container]:
    """A server in a container, with the image's own defaults."""
    running = Container(engine, image, models_directory)
    try:
        running.wait_until_listening()
        yield running
    finally:
        running.channel.close()
        running.container.remove(force=True)
