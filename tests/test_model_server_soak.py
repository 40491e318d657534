"""Swaps under valid and malformed requests: nothing wrong, nothing failed. `make soak` takes 15 minutes."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc
import psutil
import pytest
from model_server_fixtures import NAME, Endpoint, Models, RunningServer, StartServer, expected
from waiting import eventually

pytest_plugins = ["model_server_fixtures"]

# ruff: noqa: E402 (the protos import all of TensorFlow)
from model_server_requests import TIMEOUT, floats, predict_request, spec, stub
from tensorflow.core.framework import tensor_pb2, types_pb2

SECONDS = float(os.environ.get("SLIPWAY_SOAK_SECONDS", "8"))
SWAP_SECONDS = float(os.environ.get("SLIPWAY_SOAK_SWAP_SECONDS", "2"))
MALFORMED_SHARE = 0.3
GROWTH_BYTES = 24 * 2**20
REFUSED = ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND", "INTERNAL", "UNIMPLEMENTED")
PREDICT = f"/v1/models/{NAME}:predict"


def shaped(*sizes: int, values: int = 0) -> tensor_pb2.TensorProto:
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[1.0] * values)
    for size in sizes:
        tensor.tensor_shape.dim.add(size=size)
    return tensor


MESSAGES = [
    predict_request(x=shaped(0, 2**62, 2**62)).SerializeToString(),
    predict_request(x=shaped(*[1] * 33)).SerializeToString(),
    predict_request(x=shaped(2**28, 1, values=1)).SerializeToString(),
    predict_request(x=shaped(-1, 1)).SerializeToString(),
    predict_request(spec(signature="none"), x=floats(1)).SerializeToString(),
    predict_request(spec(name="none"), x=floats(1)).SerializeToString(),
    predict_request(z=floats(1)).SerializeToString(),
    b"\xff" * 40,
]
BODIES = [
    b"{", b'{"instances": ["\\ud800"]}', b'{"instances": ' + b"[" * 40 + b"]" * 40 + b"}", b"[]", b"\xff",
    b'{"instances": [' + b"9" * 5000 + b"]}",
]  # fmt: skip


class Client(threading.Thread):
    """Sends requests until told to stop, and counts what comes back."""

    def __init__(self, server: RunningServer, over_rest: bool, seed: int) -> None:
        super().__init__(daemon=True)
        self.outcomes: Counter[str] = Counter()
        self.problems: list[str] = []
        self.stopping = threading.Event()
        self._random = random.Random(seed)
        self._server = Endpoint(server.port, server.rest_port)
        self._over_rest = over_rest

    def run(self) -> None:
        while not self.stopping.is_set():
            malformed = self._random.random() < MALFORMED_SHARE
            sends: dict[tuple[bool, bool], Callable[[], None]] = {
                (False, False): self._predict, (False, True): self._malformed,
                (True, False): self._post, (True, True): self._malformed_post,
            }  # fmt: skip
            try:
                sends[self._over_rest, malformed]()
            except Exception as error:
                self._problem(f"failed: {type(error).__name__} {error}")
        self._server.channel.close()

    def _problem(self, text: str) -> None:
        self.outcomes["problem"] += 1
        self.problems.append(text)

    def _predict(self) -> None:
        x = float(self._random.randrange(1000))
        answer = stub(self._server).Predict(predict_request(x=floats(x)), timeout=TIMEOUT)
        version = answer.model_spec.version.value
        if list(answer.outputs["y"].float_val) != [expected(x, exported(version))]:
            self._problem(f"wrong: {x} by version {version}: {answer.outputs['y'].float_val}")
        self.outcomes["right"] += 1

    def _post(self) -> None:
        x = float(self._random.randrange(1000))
        status, answer = self._server.post(PREDICT, {"instances": [x]})
        rights = [[expected(x, each)] for each in range(1, 6)]
        if status != 200 or answer["predictions"] not in rights:
            self._problem(f"wrong or failed: {x}: {status} {answer}")
        self.outcomes["right"] += 1

    def _malformed(self) -> None:
        call = self._server.channel.unary_unary("/tensorflow.serving.PredictionService/Predict", None, None)
        try:
            call(self._random.choice(MESSAGES), timeout=TIMEOUT)
            self._problem("a malformed message was answered")
        except grpc.RpcError as error:
            if error.code().name not in REFUSED:
                self._problem(f"malformed: {error.code().name} {error.details()}")
        self.outcomes["refused"] += 1

    def _malformed_post(self) -> None:
        if self._random.random() < 0.2:  # half of a request
            with socket.create_connection(("127.0.0.1", self._server.rest_port), timeout=TIMEOUT) as half:
                half.sendall(f"POST {PREDICT} HTTP/1.1\r\nContent-Length: 100\r\n\r\n{{".encode())
        else:
            status, answer = self._server.post(PREDICT, self._random.choice(BODIES))
            if status != 400 or list(answer) != ["error"]:
                self._problem(f"malformed body: {status} {answer}")
        self.outcomes["refused"] += 1


def exported(version: int) -> int:
    """Return which of the five exports a version is a copy of."""
    return (version - 1) % 5 + 1


def publish(models: Models, base: Path, version: int) -> None:
    candidate = base / f"{version}.candidate"
    shutil.copytree(models.store / str(exported(version)), candidate)
    candidate.rename(base / str(version))


def test_swaps_under_malformed_requests(
    models: Models, start_server: StartServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each valid request is answered rightly, each malformed one refused, and memory stays as it is."""
    publish(models, tmp_path, 1)
    server = start_server(tmp_path, MODEL_SERVER_SETTLE_SECONDS="0")
    process = psutil.Process(server.process.pid)
    clients = [Client(server, over_rest=number == 2, seed=number) for number in range(3)]
    for client in clients:
        client.start()
    ends, memory = time.monotonic() + SECONDS, []
    for version in itertools.count(2):
        if time.monotonic() >= ends:
            break
        swapped = time.monotonic()
        publish(models, tmp_path, version)
        eventually(lambda version=version: version in live(server))
        shutil.rmtree(tmp_path / str(version - 1))
        time.sleep(max(0.0, min(swapped + SWAP_SECONDS, ends) - time.monotonic()))
        memory.append(process.memory_info().rss)
    for client in clients:
        client.stopping.set()
    for client in clients:
        client.join(60)
    outcomes = sum((client.outcomes for client in clients), Counter())
    problems = [problem for client in clients for problem in client.problems]
    with capsys.disabled():
        sizes = ", ".join(f"{size / 2**20:.0f}" for size in memory)
        sys.stderr.write(f"\nsoak: {dict(outcomes)}, {len(memory)} swaps, RSS in MiB after each: {sizes}\n")
    assert problems == []
    assert outcomes["right"] > 50 and outcomes["refused"] > 20
    assert server.is_alive and "Traceback" not in server.log
    assert len(memory) >= 2
    for size in memory[3:]:
        assert size < memory[2] + GROWTH_BYTES, f"memory grew after the third swap: {sizes} MiB"


def live(server: RunningServer) -> set[int]:
    _, status = server.get(f"/v1/models/{NAME}")
    return {int(each["version"]) for each in status["model_version_status"] if each["state"] == "AVAILABLE"}
