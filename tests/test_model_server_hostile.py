"""Clients that mean harm: no request ends the gRPC loop, and no connection keeps the others out."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from free_ports import free_port
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hpack import Encoder
from hyperframe.frame import DataFrame, Frame, HeadersFrame, SettingsFrame
from model_server_fixtures import NAME, Endpoint, Models, RunningServer, StartServer
from waiting import eventually

pytest_plugins = ["model_server_fixtures"]

# ruff: noqa: E402 (the protos import all of TensorFlow)
from model_server_requests import TIMEOUT, error_of, floats, predict_request, spec, stub
from tensorflow.core.framework import tensor_pb2, types_pb2

from model_server.api.grpc import grpc_loop
from model_server.api.grpc.grpc_server import Address, GrpcServer
from model_server.api.grpc.servicers import PREDICTION_SERVICE, prediction_service
from model_server.api.rest import rest
from model_server.api.rest.rest import RestServer
from model_server.base import flags, settings
from model_server.models import servable
from model_server.models.routing import Route, RoutingTable
from model_server.models.servable_store import ServableStore
from model_server.observability import metrics
from model_server.requests import plans
from model_server.tensorflow_c.tf_session import Session

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
    probed = RestServer(("127.0.0.1", 0), catalog, flags.parse([], {}).options, settings.read({}))
    probed.grpc_answers = lambda: inside.grpc.is_turning
    probed.ready.set()
    probed.start()

    def probe(path: str) -> int:
        connection = http.client.HTTPConnection(*probed.server_address[:2], timeout=20)
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
        probed.drain(0)
    assert eventually(lambda: inside.grpc.is_turning)


def test_the_process_does_not_outlive_its_loop() -> None:
    """Alive and mute, no supervisor would start it anew."""
    program = (
        "from model_server.api.grpc.grpc_loop import GrpcLoop\n"
        "loop = GrpcLoop.__new__(GrpcLoop)\n"
        "loop._state = None\n"
        "loop._serve()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 70
    assert "the gRPC loop has ended" in ended.stderr


def filled(*sizes: int, datatype: int = types_pb2.DT_FLOAT) -> tensor_pb2.TensorProto:
    """Return a tensor of one value, which the official server repeats to fill the shape."""
    tensor = of_shape(*sizes, datatype=datatype)
    if datatype == types_pb2.DT_STRING:
        tensor.string_val.append(b"x")
    else:
        tensor.float_val.append(1.0)
    return tensor


@pytest.mark.parametrize(
    ("tensor", "signature", "text"),
    [
        (
            filled(2**27, datatype=types_pb2.DT_STRING),
            "text",
            "filled the tensors would take 4294967296 bytes",
        ),
        (
            filled(2**27, datatype=types_pb2.DT_STRING),
            "",
            "Expects arg[0] to be float but string is provided",
        ),
        (filled(2**28, 1), "", "expected at most 67108864. Send all values."),
        (filled(2**29), "", "shape [536870912], expected [-1, 1]"),
        (filled(2**28, 2), "", "shape [268435456, 2], expected [-1, 1]"),
    ],
)
def test_a_shape_is_no_way_to_take_memory(
    server: RunningServer, tensor: tensor_pb2.TensorProto, signature: str, text: str
) -> None:
    """45 bytes on the wire would be 2 GiB: nothing is allocated before type, rank and size are checked."""
    before = psutil.Process(server.process.pid).memory_info().rss
    alias = "text" if signature == "text" else "x"
    request = predict_request(spec(signature=signature), **{alias: tensor})
    code, details = error_of(stub(server).Predict, request)
    assert (code, text in details) == ("INVALID_ARGUMENT", True), details
    assert psutil.Process(server.process.pid).memory_info().rss - before < 64 * 2**20


def test_a_tensor_of_fewer_values_than_elements_is_filled(server: RunningServer) -> None:
    """As the official server does, up to 64 MiB."""
    answer = stub(server).Predict(predict_request(x=filled(1000, 1)), timeout=TIMEOUT)
    assert list(answer.outputs["y"].float_val) == [2.5] * 1000


def test_only_sizes_known_as_quick_run_in_the_thread_that_reads(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small requests do not vouch for one of 17 MB."""
    threads: list[str] = []
    run_to = Session.run_to

    def noted(session: Session, *arguments: Any) -> Any:
        threads.append(threading.current_thread().name.partition("_")[0])
        return run_to(session, *arguments)

    monkeypatch.setattr(Session, "run_to", noted)
    monkeypatch.setattr(plans, "_QUICK_SECONDS", 60.0)

    def is_quick() -> bool:
        """On a busy machine the run before may not be over yet: then an inference thread gets this one."""
        assert inside.predict(1, 2) == [2.5, 3.0]
        return threads[-1] == "grpc"

    for _ in range(3):
        assert not is_quick()
    eventually(is_quick)
    for count in (100, 4000, 100_000):
        assert inside.predict(*[1.0] * count) == [2.5] * count
        assert threads[-1] == "inference"
    eventually(is_quick)


def test_a_signature_with_a_loop_is_never_quick(models: Models) -> None:
    """A value decides how often it turns: the gRPC thread would be gone for as long."""
    options = replace(flags.parse([], {}).options, model_name=NAME)
    loaded = servable.load(models.store / "1", 1, options)
    assert loaded.with_loops == {"turns"}
    loaded.close()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("predict", b'{"instances": [1], "\\ud800": 1}', 400),
        ("predict", b'{"instances": ["\\ud800"]}', 400),
        ("predict", b'{"instances": ["\xed\xa0\x80"]}', 400),
        ("predict", b'{"signature_name": "\\udfff", "instances": [1]}', 400),
        ("classify", b'{"examples": [{"\\ud83d": 1}], "signature_name": "classify"}', 400),
        ("predict", b'{"instances": ' + b"[" * 40 + b"1" + b"]" * 40 + b"}", 400),
        ("predict", b'{"inputs": ' + b"[" * 900 + b"1" + b"]" * 900 + b"}", 400),
        ("predict", b'{"other": ' + b"[" * 900 + b"]" * 900 + b"}", 400),
        ("predict", b'{"instances": [' + b"9" * 5000 + b"]}", 400),
        ("/versions/" + "9" * 5000 + ":predict", b"{}", 400),
        ("/versions/" + "0" * 5000 + "1:predict", b"{}", 400),
    ],
)
def test_json_that_python_stumbles_over(server: RunningServer, path: str, body: bytes, status: int) -> None:
    """The client's error, as JSON, on a connection that goes on."""
    path = f"/v1/models/{NAME}{path}" if path.startswith("/") else f"/v1/models/{NAME}:{path}"
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=TIMEOUT)
    for _ in range(2):
        connection.request("POST", path, body)
        response = connection.getresponse()
        assert response.status == status
        assert list(json.loads(response.read())) == ["error"]
    connection.close()
    assert "Traceback" not in server.log


def test_both_halves_of_a_pair_are_a_character(server: RunningServer) -> None:
    """JSON escapes characters past the first 65,536 so."""
    body = b'{"signature_name": "text", "instances": ["\\ud83d\\ude00"]}'
    status, answer = server.post(f"/v1/models/{NAME}:predict", body)
    assert (status, answer["predictions"][0]["text"]) == (200, "\N{GRINNING FACE}")


@pytest.mark.parametrize("line", [b"\x16\x03\x01\r\n", b"GET\r\n", b"GET / HTTP/9.9\r\n", b"x" * 70000])
def test_what_is_not_http_gets_json(server: RunningServer, line: bytes) -> None:
    """Never a page of HTML."""
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=TIMEOUT) as connection:
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: connection.recv(2**16), b""))
    assert list(json.loads(received[received.index(b"{") :])) == ["error"]


def half_sent(server: RunningServer | RestServer) -> socket.socket:
    """Return a connection with half of a request on it."""
    port = server.rest_port if isinstance(server, RunningServer) else server.server_address[1]
    connection = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
    connection.sendall(b"POST /v1/models/x:predict HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n{")
    return connection


def test_half_sent_bodies_keep_nobody_out(server: RunningServer) -> None:
    """1,008 of them: status and inference are answered, gRPC too, and threads stay bounded."""
    connections = []
    try:
        for number in range(1008):
            connections.append(half_sent(server))
            if number % 100 == 0:
                assert server.get(f"/v1/models/{NAME}")[0] == 200
        assert server.post(f"/v1/models/{NAME}:predict", {"instances": [1.0]}) == (
            200,
            {"predictions": [2.5]},
        )
        answers(server)
        assert psutil.Process(server.process.pid).num_threads() < 400
    finally:
        for connection in connections:
            connection.close()


def bare_rest(**changed: Any) -> RestServer:
    """Return the HTTP server alone, started."""
    catalog: Any = None
    chosen = replace(settings.read({}), **changed)
    server = RestServer(("127.0.0.1", 0), catalog, flags.parse([], {}).options, chosen)
    server.start()
    return server


def test_a_body_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """408 as JSON; a byte now and then does not move it."""
    monkeypatch.setattr(rest, "_BODY_SECONDS", 0.2)
    server = bare_rest()
    server.ready.set()
    try:
        with half_sent(server) as connection:
            received = connection.recv(2**16)
        assert received.startswith(b"HTTP/1.1 408 ")
        assert b'"error": "The body did not arrive in time' in received
    finally:
        server.drain(0)


def test_bodies_together_have_a_bound() -> None:
    """Each is below its own."""
    server = bare_rest(rest_body_megabytes=0.1)
    server.ready.set()
    held = []
    try:
        for _ in range(2):
            held.append(socket.create_connection(server.server_address[:2], timeout=TIMEOUT))
            held[-1].sendall(
                b"POST /v1/models/x:predict HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + b" " * 99_000
            )
        eventually(lambda: server._held_bytes > 130_000)
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=TIMEOUT)
        connection.request("POST", "/v1/models/x:predict", b" " * 90_000)
        assert connection.getresponse().status == 503
        for each in held:
            each.close()
        eventually(lambda: server._held_bytes == 0)
    finally:
        server.drain(0)


def test_a_full_server_answers_before_it_reads_the_body() -> None:
    """And closes the connection of who would go on sending."""
    server = bare_rest(rest_connections=17)
    server.ready.set()
    server._in_flight = 1
    try:
        with half_sent(server) as connection:
            received = connection.recv(2**16)
        assert received.startswith(b"HTTP/1.1 503 ")
        assert b"Connection: close" in received
    finally:
        server.drain(0)
