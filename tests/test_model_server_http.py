"""REST at its edges: packed answers, limits, shed load, few threads, methods that no path has."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from model_server_fixtures import NAME, Models, RunningServer, StartServer
from waiting import eventually

from model_server.api.rest import http_bodies
from model_server.api.rest.rest import RestServer
from model_server.base import flags, settings
from tasks.answers import numerics

pytest_plugins = ["model_server_fixtures"]
PREDICT = f"/v1/models/{NAME}:predict"
ENDLESS = json.dumps({"signature_name": "turns", "inputs": 10**12}).encode()
SMALL = {"instances": [1.0]}


@pytest.fixture(scope="module")
def small_server(
    models: Models, start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> RunningServer:
    """One thread, one place to wait, a tenth of a megabyte, and runs of at most two seconds."""
    base_path = tmp_path_factory.mktemp("http")
    models.publish(base_path, 1)
    return start_server(
        base_path,
        "--rest_api_num_threads=1",
        "--rest_api_timeout_in_ms=2000",
        MODEL_SERVER_REST_QUEUE="1",
        MODEL_SERVER_REST_BODY_MEGABYTES="0.1",
    )


def test_one_thread_answers_more_than_one_connection(small_server: RunningServer) -> None:
    """The official server freezes with --rest_api_num_threads=1; an idle connection holds no thread here."""
    idle = http.client.HTTPConnection("127.0.0.1", small_server.rest_port, timeout=20)
    try:
        for _ in range(2):
            idle.request("POST", PREDICT, json.dumps(SMALL))
            assert idle.getresponse().read()
            assert small_server.post(PREDICT, SMALL)[0] == 200
    finally:
        idle.close()


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../../etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd", "/../../etc/passwd",
        f"/v1/models/{NAME}/versions/../metadata", f"/v1/models/{NAME}%00",
        f"/v1/models/..%2f{NAME}/metadata", "//etc/passwd",
    ],
)  # fmt: skip
def test_no_path_of_a_request_leads_to_a_file(small_server: RunningServer, path: str) -> None:
    """Names are looked up among the models in service, never on a disk."""
    connection = http.client.HTTPConnection("127.0.0.1", small_server.rest_port, timeout=20)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status in (400, 404)
        assert b"root:" not in answer.read()
    finally:
        connection.close()


def test_load_past_the_bound_is_shed(small_server: RunningServer) -> None:
    """503 with Retry-After, at once; what was admitted is answered, here by its timeout."""
    answers: list[tuple[int, Any, bytes]] = []
    threads: list[threading.Thread] = []

    def shed() -> list[tuple[int, Any, bytes]]:
        threads.append(
            threading.Thread(target=lambda: answers.append(small_server.raw("POST", PREDICT, ENDLESS)))
        )
        threads[-1].start()
        return [answer for answer in answers if answer[0] == 503]

    _, headers, body = eventually(shed, 20)[0]
    assert headers["Retry-After"] == "1"
    assert json.loads(body)["error"].startswith("The server is busy: 2 requests are being answered or wait")
    for thread in threads:
        thread.join(20)
    assert {status for status, _, _ in answers} == {503, 504}


def test_status_is_answered_while_all_threads_are_busy(small_server: RunningServer) -> None:
    """It does not wait for those that keep the server busy."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(small_server.post(PREDICT, ENDLESS)))
    thread.start()
    assert small_server.get(f"/v1/models/{NAME}")[0] == 200
    assert answers == []
    thread.join(20)


def test_a_body_past_the_limit_is_refused(small_server: RunningServer) -> None:
    """413, whether it is announced, in chunks, or packed."""
    large = json.dumps({"instances": [0.0] * 40_000}).encode()
    assert small_server.post(PREDICT, large)[0] == 413
    assert small_server.post(PREDICT, gzip.compress(large), Content_Encoding="gzip")[0] == 413
    connection = http.client.HTTPConnection("127.0.0.1", small_server.rest_port, timeout=20)
    connection.request("POST", PREDICT, iter([large[:50_000]] * 3), encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_large_answers_are_packed_for_who_accepts_it(half_plus_two: RunningServer) -> None:
    """The same JSON; small ones, and those for others, stay plain."""
    body = json.dumps({"instances": [0.5] * 1000}).encode()
    _, headers, plain = half_plus_two.raw("POST", PREDICT, body)
    assert headers["Content-Encoding"] is None
    _, headers, packed = half_plus_two.raw("POST", PREDICT, body, Accept_Encoding="deflate, gzip;q=0.5")
    assert (headers["Content-Encoding"], headers["Vary"]) == ("gzip", "Accept-Encoding")
    assert gzip.decompress(packed) == plain
    _, headers, _ = half_plus_two.raw("POST", PREDICT, json.dumps(SMALL).encode(), Accept_Encoding="gzip")
    assert headers["Content-Encoding"] is None


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True), ("*", True), ("br, gzip", True), ("gzip;q=0.1, br", True), ("gzip; q=1", True),
        ("", False), ("br", False), ("gzip;q=0", False), ("gzip;q=0.0, br", False), ("x-gzip", False),
    ],
)  # fmt: skip
def test_what_accept_encoding_accepts(accepted: str, packed: bool) -> None:
    """By RFC 9110; a weight of 0 is a refusal."""
    headers = http.client.HTTPMessage()
    headers["Accept-Encoding"] = accepted
    assert http_bodies.takes_gzip(headers, b"x" * 2000) is packed


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "HEAD"])
def test_methods_that_no_path_has(half_plus_two: RunningServer, method: str) -> None:
    """In the official words, and the connection goes on."""
    connection = http.client.HTTPConnection("127.0.0.1", half_plus_two.rest_port, timeout=20)
    connection.request(method, "/v1/models/x", b"{}" if method != "HEAD" else None)
    response = connection.getresponse()
    assert response.status == 400
    body = response.read()
    assert body == b"" if method == "HEAD" else f"Malformed request: {method} /v1/models/x" in body.decode()
    connection.request("GET", f"/v1/models/{NAME}")
    assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ({"Content-Length": "+5"}, b"12345"),
        ({"Content-Length": "1_0"}, b"1234567890"),
        ({"Content-Length": "9"}, b"short"),
        ({"Content-Length": "5", "Transfer-Encoding": "chunked"}, b"0\r\n\r\n"),
        ({"Transfer-Encoding": "gzip, chunked"}, b"0\r\n\r\n"),
        ({"Transfer-Encoding": "chunked"}, b"-5\r\n12345\r\n0\r\n\r\n"),
        ({"Transfer-Encoding": "chunked"}, b"2\r\n1234\r\n0\r\n\r\n"),
        ({"Transfer-Encoding": "chunked"}, b""),
    ],
)
def test_bodies_without_a_clear_end_are_refused(head: dict[str, str], body: bytes) -> None:
    """Nothing that a proxy in front might read otherwise."""
    headers = http.client.HTTPMessage()
    for name, value in head.items():
        headers[name] = value
    with pytest.raises(http_bodies.BodyError, match="length of the body") as caught:
        http_bodies.read(io.BytesIO(body), headers, 1000)
    assert caught.value.status is HTTPStatus.BAD_REQUEST


def test_cors_headers_are_on_every_answer(models: Models, start_server: StartServer, tmp_path: Path) -> None:
    """With --rest_api_enable_cors_support: errors too; a preflight needs an Origin."""
    models.publish(tmp_path, 1)
    server = start_server(tmp_path, "--rest_api_enable_cors_support")
    for path in (PREDICT, "/v1/models/unknown:predict"):
        headers = server.raw("POST", path, json.dumps(SMALL).encode())[1]
        assert headers["Access-Control-Allow-Origin"] == "*"
    assert server.raw("OPTIONS", PREDICT, None, Origin="https://example.org")[0] == 200
    assert server.raw("OPTIONS", PREDICT, None, Origin="file://x")[0] == 400
    assert server.raw("OPTIONS", PREDICT, None)[0] == 400


@pytest.fixture
def bare_rest() -> Iterator[RestServer]:
    """The HTTP server alone, with nothing behind it but a page of metrics."""
    catalog: Any = None
    server = RestServer(("127.0.0.1", 0), catalog, flags.parse([], {}).options, settings.read({}))
    server.metrics_path, server.metrics_page = "/metrics", lambda: b"none"
    server.start()
    yield server
    if not server.draining:
        server.drain(0)


def _connected(server: RestServer) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(*server.server_address, timeout=20)
    connection.connect()
    return connection


def test_a_drain_waits_for_the_first_request_of_a_connection(bare_rest: RestServer) -> None:
    """It was made while the server still listened: closing it would fail a request that is on its way."""
    bare_rest.first_request_seconds = 60
    connection = _connected(bare_rest)
    draining = threading.Thread(target=bare_rest.drain, args=(time.monotonic() + 60,))
    draining.start()
    draining.join(0.5)
    assert draining.is_alive()
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Connection"]) == (200, "close")
    draining.join(20)
    assert not draining.is_alive()


def test_a_connection_that_never_asks_holds_no_drain_up(bare_rest: RestServer) -> None:
    """Nor does one that stays open after its answer."""
    bare_rest.first_request_seconds = 0.1
    silent, idle = _connected(bare_rest), _connected(bare_rest)
    idle.request("GET", "/metrics")
    assert idle.getresponse().read()
    draining = threading.Thread(target=bare_rest.drain, args=(time.monotonic() + 600,))
    draining.start()
    draining.join(60)
    assert not draining.is_alive()
    silent.close()


def test_the_conditions_of_rounding_are_reported(half_plus_two_process: RunningServer) -> None:
    """The same as a pipeline's process on this machine says: where they are equal, the same bits are due."""
    status, reported = half_plus_two_process.get("/numerics")
    assert status == 200 and reported.pop("merges") == "yes"
    assert reported == numerics.conditions()


def test_other_threads_and_switches_are_other_conditions(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """A pipeline then allows rounding; without batching, nobody else's request is in a run."""
    models.publish(tmp_path, 1)
    server = start_server(
        tmp_path,
        "--tensorflow_intra_op_parallelism=7",
        ONEDNN_MAX_CPU_ISA="SSE41",
        MODEL_SERVER_BATCHING="off",
    )
    _, reported = server.get("/numerics")
    assert (reported["threads"], reported["ONEDNN_MAX_CPU_ISA"]) == ("7", "SSE41")
    assert reported.pop("merges") == "no" and not numerics.alike(reported, numerics.conditions())


def test_a_client_on_this_machine_asks_no_proxy(
    half_plus_two_process: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where `http_proxy` is set, gRPC would send even 127.0.0.1 there."""
    from tasks.servers.serving_client import ServingClient

    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with ServingClient(f"127.0.0.1:{half_plus_two_process.port}", NAME, 20) as client:
        assert "serving_default" in client.signatures()


def test_idle_connections_of_one_client_shut_nobody_out(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """1,100 of them on the gRPC port, more than the descriptors that a shell allows; others are answered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    models.publish(tmp_path, 1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    try:
        server = start_server(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with contextlib.ExitStack() as idle:
            for _ in range(1100):
                idle.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            assert server.post(PREDICT, SMALL)[0] == 200
            assert server.get("/numerics")[0] == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
