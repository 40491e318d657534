"""The server's image: small, hardened, healthy, and the same answers as the process."""

from __future__ import annotations

import time
from pathlib import Path

import docker
import pytest
from model_server_fixtures import NAME, RunningServer, expected, wait_until
from model_server_image import Container

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

LARGEST_MEGABYTES = 750


def test_the_container_answers_as_the_process_does(
    container: Container, half_plus_two_process: RunningServer
) -> None:
    """The very same bytes, over gRPC and REST."""
    values = [0.1 * i for i in range(64)]
    for method, request in (
        ("Predict", predict_request(x=floats(*values))),
        ("Classify", classify_request("classify", *values)),
        ("Regress", regress_request("regress", *values)),
    ):
        here = getattr(stub(half_plus_two_process), method)(request, timeout=TIMEOUT)
        there = getattr(stub(container), method)(request, timeout=TIMEOUT)
        assert here == there
    path = f"/v1/models/{NAME}:predict"
    body = {"instances": values}
    assert container.post(path, body) == half_plus_two_process.post(path, body)
    assert container.get(f"/v1/models/{NAME}") == half_plus_two_process.get(f"/v1/models/{NAME}")
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
    imports = (
        "from model_server.tensorflow_c import runtime; runtime.import_tensorflow(); "
        "import model_server.processes.server"
    )
    code, output = container.run("python", "-P", "-v", "-c", imports)
    assert code == 0
    compiled = [line for line in output.splitlines() if line.startswith("# code object from '/")]
    assert len(compiled) > 150
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
