"""Clients that mean harm: no request ends the gRPC loop, and no connection keeps the others out."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_port
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hpack import Encoder
from hyperframe.frame import DataFrame, Frame, HeadersFrame, SettingsFrame
from model_server_fixtures import NAME, Endpoint, Models, RunningServer, StartServer
from waiting import eventually

pytest_plugins = ["model_server_fixtures"]

# ruff: noqa: E402 (the protos import all of TensorFlow)
from model_server_requests import TIMEOUT, error_of, floats, predict_request, stub
from tensorflow.core.framework import tensor_pb2, types_pb2

from model_server import flags, grpc_loop, metrics, servable, settings
from model_server.grpc_server import Address, GrpcServer
from model_server.rest import RestServer
from model_server.routing import Route, RoutingTable
from model_server.servable_store import ServableStore
from model_server.servicers import PREDICTION_SERVICE, prediction_service

PREDICT_PATH = f"/{PREDICTION_SERVICE}/Predict"


@pytest.fixture(scope="module")
def server(
    models: Models, start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> RunningServer:
    """A server that has learned that its default signature is quick."""
    base_path = tmp_path_factory.mktemp("hostile")
    models.publish(base_path, 1)
    running = start_server(base_path)
    for _ in range(10):
        answers(running)
    return running


def answers(server: RunningServer) -> None:
    """See gRPC answer rightly, health included."""
    answer = stub(server).Predict(predict_request(x=floats(1, 2)), timeout=TIMEOUT)
    assert list(answer.outputs["y"].float_val) == [2.5, 3.0]
    health = health_pb2_grpc.HealthStub(server.channel).Check(
        health_pb2.HealthCheckRequest(), timeout=TIMEOUT
    )
    assert health.status == health_pb2.HealthCheckResponse.SERVING


def of_shape(*sizes: int, datatype: int = types_pb2.DT_FLOAT) -> tensor_pb2.TensorProto:
    proto = tensor_pb2.TensorProto(dtype=datatype)
    for size in sizes:
        proto.tensor_shape.dim.add(size=size)
    return proto


HUGE = (0, 2**62, 2**62)


@pytest.mark.parametrize(
    "tensor", [of_shape(*HUGE), of_shape(2**62, 2**62, 0), of_shape(*[1] * 33), of_shape(*[0] * 40)]
)
def test_a_shape_that_no_array_can_have(server: RunningServer, tensor: tensor_pb2.TensorProto) -> None:
    """It is the client's error, on the quick path and on the full one."""
    code, details = error_of(stub(server).Predict, predict_request(x=tensor), 5)
    assert (code, details.startswith("tensor parsing error: x")) == ("INVALID_ARGUMENT", True)
    answers(server)


def http2(server: RunningServer, *frames: Frame) -> Iterator[bytes]:
    """Send frames on a connection, and yield what comes back until the server closes or is silent."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=2) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize())
        connection.sendall(b"".join(frame.serialize() for frame in frames))
        try:
            while received := connection.recv(2**16):
                yield received
        except OSError:
            return


def call_of(path: bytes, message: bytes = b"") -> tuple[Frame, Frame]:
    """Return the frames of a unary call."""
    head = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x"),
        (b"content-type", b"application/grpc"), (b"te", b"trailers"),
    ]  # fmt: skip
    headers = HeadersFrame(1, Encoder().encode(head), flags=["END_HEADERS"])
    data = DataFrame(1, b"\0" + len(message).to_bytes(4, "big") + message, flags=["END_STREAM"])
    return headers, data


@pytest.mark.parametrize("path", [b"/\xff\xfe/\x80", b"/" + PREDICT_PATH.encode() + b"\xc3", b"\xff"])
def test_a_path_that_is_not_utf_8(server: RunningServer, path: bytes) -> None:
    """Its call is refused, and the next ones are answered."""
    next(http2(server, *call_of(path)), None)
    answers(server)


class Inside:
    """The gRPC side of a server in this process, where a test can break it."""

    def __init__(self, models: Models) -> None:
        options = replace(flags.parse([], {}).options, model_name=NAME, grpc_max_threads=2)
        store = ServableStore(lambda directory, number: servable.load(directory, number, options))
        store.load(NAME, 1, Path(models.store / "1"))
        store.publish(RoutingTable(1, {NAME: Route(frozenset({1}))}))
        predictions = prediction_service(store, check_method_names=False)
        self.grpc = GrpcServer(options, settings.read({}), store, predictions, [])
        port = free_port()
        self.grpc.listen([Address(f"127.0.0.1:{port}", "--port")], None)
        self.grpc.start()
        self.client = Endpoint(port, 0)

    def predict(self, *values: float) -> list[float]:
        request = predict_request(x=floats(*values))
        return list(stub(self.client).Predict(request, timeout=TIMEOUT).outputs["y"].float_val)

    @property
    def inference(self) -> Any:
        return self.grpc._loop._inference


@pytest.fixture
def inside(models: Models) -> Iterator[Inside]:
    """Such a server, which has answered once."""
    made = Inside(models)
    assert made.predict(1) == [2.5]
    yield made
    made.client.channel.close()
    made.grpc.stop(0).wait(20)


def test_no_request_needs_a_new_thread(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit of processes (`--pids-limit`) the system refuses one."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(5):  # the full path, by an alias that is not the signature's, and the quick one
            code, _ = error_of(stub(inside.client).Predict, predict_request(z=floats(1)))
            assert code == "INVALID_ARGUMENT"
            assert inside.predict(1, 2) == [2.5, 3.0]


def test_an_error_nobody_foresaw_fails_its_own_call(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """INTERNAL for that one, a number on the page of metrics, and the loop goes on."""

    def fail(_: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(inside.inference, "accept", fail)
        code, details = error_of(stub(inside.client).Predict, predict_request(x=floats(1)))
    assert (code, details) == ("INTERNAL", "the server failed")
    assert inside.predict(1) == [2.5]
    counted = {
        key[3]["where"]: words[1]
        for key, words in metrics.RECORDER.file.blocks()
        if key[1] == "model_server_guarded_errors_total"
    }
    assert counted["the gRPC loop"] == 1


def test_a_loop_that_hangs_is_noticed(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread lives: /livez and /readyz look at when it turned last."""
    catalog: Any = type("Catalog", (), {"models": type("Models", (), {"waited_for": lambda _: []})()})()
    rest = RestServer(("127.0.0.1", 0), catalog, flags.parse([], {}).options, settings.read({}))
    rest.grpc_answers = lambda: inside.grpc.is_turning
    rest.ready.set()
    rest.start()

    def probe(path: str) -> int:
        connection = http.client.HTTPConnection(*rest.server_address, timeout=20)
        connection.request("GET", path)
        return connection.getresponse().status

    monkeypatch.setattr(grpc_loop, "_MUTE_SECONDS", 1.0)
    released = threading.Event()
    monkeypatch.setattr(inside.inference, "run", released.wait)
    try:
        assert eventually(lambda: probe("/livez") == probe("/readyz") == 200)
        call = stub(inside.client).Predict.future(predict_request(x=floats(1)), timeout=TIMEOUT)
        assert eventually(lambda: probe("/livez") == probe("/readyz") == 503)
        call.cancel()
    finally:
        released.set()
        rest.drain(0)
    assert eventually(lambda: inside.grpc.is_turning)


def test_the_process_does_not_outlive_its_loop() -> None:
    """Alive and mute, no supervisor would start it anew."""
    program = (
        "from model_server.grpc_loop import GrpcLoop\n"
        "loop = GrpcLoop.__new__(GrpcLoop)\n"
        "loop._state = None\n"
        "loop._serve()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 70
    assert "the gRPC loop has ended" in ended.stderr
