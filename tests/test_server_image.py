"""The server's image: small, hardened, healthy, and the same answers as the process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import docker
import docker.errors
import pytest
from model_server_fixtures import NAME, Endpoint, Models, RunningServer, expected, free_port, wait_until

pytest_plugins = ["model_server_fixtures"]
pytestmark = pytest.mark.docker

# ruff: noqa: E402 (the protos import all of TensorFlow)
from model_server_requests import (
    TIMEOUT,
    classify_request,
    floats,
    predict_request,
    regress_request,
    stub,
    turns_request,
)

CONTAINERS = Path(__file__).resolve().parent.parent / "containers"
BASE_IMAGE = "slipway-base:bookworm"
LARGEST_MEGABYTES = 750
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


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.DockerClient]:
    """Docker, where an engine answers."""
    try:
        client = docker.from_env()
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        unavailable(f"no Docker engine answers: {error}")
    yield client
    client.close()


@pytest.fixture(scope="module")
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
    for path in sorted(context.glob("*")):
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    tag = f"slipway-model-server-test:{digest.hexdigest()[:16]}"
    try:
        engine.images.get(tag)
    except docker.errors.ImageNotFound:
        engine.images.build(
            path=str(context), tag=tag, buildargs={"BASE_IMAGE": BASE_IMAGE}, network_mode="host", rm=True
        )
    return tag


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def container(engine: docker.DockerClient, image: str, models_directory: Path) -> Iterator[Container]:
    """A server in a container, with the image's own defaults."""
    running = Container(engine, image, models_directory)
    try:
        running.wait_until_listening()
        yield running
    finally:
        running.channel.close()
        running.container.remove(force=True)


def test_the_container_answers_as_the_process_does(
    container: Container, half_plus_two: RunningServer
) -> None:
    """The very same bytes, over gRPC and REST."""
    values = [0.1 * i for i in range(64)]
    for method, request in (
        ("Predict", predict_request(x=floats(*values))),
        ("Classify", classify_request("classify", *values)),
        ("Regress", regress_request("regress", *values)),
    ):
        here = getattr(stub(half_plus_two), method)(request, timeout=TIMEOUT)
        there = getattr(stub(container), method)(request, timeout=TIMEOUT)
        assert here == there
    path = f"/v1/models/{NAME}:predict"
    body = {"instances": values}
    assert container.post(path, body) == half_plus_two.post(path, body)
    assert container.get(f"/v1/models/{NAME}") == half_plus_two.get(f"/v1/models/{NAME}")
    assert container.post(path, {"instances": [1.0]}) == (200, {"predictions": [expected(1.0)]})


def test_the_container_becomes_healthy(container: Container) -> None:
    """By the health service, asked from inside."""
    wait_until(lambda: container.health == "healthy", "health", lambda: container.log, seconds=45)


def test_the_server_runs_as_nobody_in_particular(container: Container) -> None:
    """Not as root, and not able to write anywhere but in /tmp."""
    assert container.run("id", "-u") == (0, "65532\n")
    assert container.run("touch", "/opt/x")[0] != 0
    assert container.run("touch", "/tmp/x")[0] == 0
    assert "Traceback" not in container.log


def test_the_server_compiles_nothing_at_its_start(container: Container) -> None:
    """All bytecode that it needs is in the image, where a read-only root could not hold it later."""
    imports = "from model_server import runtime; runtime.import_tensorflow(); import model_server.server"
    code, output = container.run("python", "-P", "-v", "-c", imports)
    assert code == 0
    compiled = [line for line in output.splitlines() if line.startswith("# code object from '/")]
    assert len(compiled) > 500
    assert [line for line in compiled if ".pyc" not in line] == []


def test_the_image_is_small(engine: docker.DockerClient, image: str) -> None:
    """Mostly TensorFlow's two libraries; the README says what it weighs."""
    assert engine.images.get(image).attrs["Size"] / 1e6 < LARGEST_MEGABYTES


def test_docker_stop_drains(engine: docker.DockerClient, image: str, models_directory: Path) -> None:
    """A request under way is answered, and the exit code is 0, well before Docker would kill it."""
    running = Container(engine, image, models_directory)
    try:
        running.wait_until_listening()
        predict = stub(running).Predict
        predict(predict_request(x=floats(1)), timeout=TIMEOUT)
        slow = predict.future(turns_request(200_000), timeout=60)
        predict(predict_request(x=floats(1)), timeout=TIMEOUT)
        started = time.monotonic()
        running.container.stop(timeout=30)
        assert time.monotonic() - started < 25
        assert list(slow.result().outputs["turned"].int64_val) == [200_000]
        assert running.container.wait()["StatusCode"] == 0
        assert "stopped" in running.log
    finally:
        running.channel.close()
        running.container.remove(force=True)
