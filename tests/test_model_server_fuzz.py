"""Bytes that nobody meant: on every method over a real channel, and on REST. Never a crash, never a trace."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterable
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hpack import Encoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_server_fixtures import NAME, Models, RunningServer, StartServer

pytest_plugins = ["model_server_fixtures"]

# ruff: noqa: E402 (the protos import all of TensorFlow)
from model_server_requests import (
    asked,
    classify_request,
    floats,
    predict_request,
    regress_request,
    spec,
    stub,
)
from tensorflow.tsl.profiler.protobuf import profiler_options_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from model_server.api.grpc import profiler_service

PREDICTION, MODEL = "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"
# What a stack trace, or an exception that nobody foresaw, looks like in an answer.
TRACES = ("Traceback", 'File "', "Error: ", "Exception calling application")
EXAMPLES = int(os.environ.get("SLIPWAY_FUZZ_EXAMPLES", "40"))
"""Of each test; `make fuzz` takes thousands."""
BATCH = 50
fuzzed = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])


def valid_requests() -> dict[str, list[Any]]:
    """Return good requests by method; none asks the profiler to write anything."""
    task = inference_pb2.InferenceTask(
        model_spec=spec(signature="classify"), method_name="tensorflow/serving/classify"
    )
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.add(name="x", base_path="/nowhere", model_platform="tensorflow")
    profile = profiler_service.MESSAGES["ProfileRequest"](
        opts=profiler_options_pb2.ProfileOptions(duration_ms=1), session_id="s"
    )
    return {
        f"{PREDICTION}/Predict": [
            predict_request(x=floats(1, 2)),
            predict_request(spec(signature="classify"), x=floats(1)),
            predict_request(spec(version=1, signature="two_inputs"), ("sum",), a=floats(1), b=floats(2)),
        ],
        f"{PREDICTION}/Classify": [classify_request("classify", 1, 2), classify_request("scores_only", 1)],
        f"{PREDICTION}/Regress": [regress_request("regress", 1, 2)],
        f"{PREDICTION}/MultiInference": [inference_pb2.MultiInferenceRequest(tasks=[task], input=asked(1))],
        f"{PREDICTION}/GetModelMetadata": [
            get_model_metadata_pb2.GetModelMetadataRequest(
                model_spec=spec(), metadata_field=["signature_def"]
            )
        ],
        f"{MODEL}/GetModelStatus": [get_model_status_pb2.GetModelStatusRequest(model_spec=spec())],
        f"{MODEL}/HandleReloadConfigRequest": [model_management_pb2.ReloadConfigRequest(config=config)],
        f"{profiler_service.SERVICE}/Profile": [profile],
        f"{profiler_service.SERVICE}/Terminate": [
            profiler_service.MESSAGES["TerminateRequest"](session_id="s")
        ],
    }


VALID = valid_requests()


@st.composite
def mutated(draw: st.DrawFn, originals: Iterable[bytes]) -> bytes:
    """Return one of `originals` after up to eight bytes or slices of it were changed, cut out or repeated."""
    data = bytearray(draw(st.sampled_from(list(originals))))
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 4)))
        data[at:end] = draw(st.one_of(st.binary(max_size=4), st.just(bytes(data[at:end]) * 2)))
    return bytes(data)


def bytes_like(originals: Iterable[bytes]) -> st.SearchStrategy[bytes]:
    return st.one_of(st.binary(max_size=64), mutated(list(originals)))


@pytest.fixture(scope="module")
def server(
    models: Models, start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> RunningServer:
    """A server of this module's own: a reload that happens to be valid may take its model away."""
    base_path = tmp_path_factory.mktemp("fuzz")
    models.publish(base_path, 1)
    return start_server(base_path, "--rest_api_timeout_in_ms=2000", "--max_num_load_retries=0")


@pytest.fixture(scope="module")
def steady(
    models: Models, start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> RunningServer:
    """A server whose models no request changes."""
    base_path = tmp_path_factory.mktemp("steady")
    models.publish(base_path, 1)
    return start_server(
        base_path, "--rest_api_timeout_in_ms=2000", MODEL_SERVER_RELOAD="false", MODEL_SERVER_REST_QUEUE="100"
    )


@pytest.mark.parametrize("method", VALID)
def test_bytes_on_a_method(server: RunningServer, method: str) -> None:
    """The answer is a message, or a status that says what was wrong."""
    call = server.channel.unary_unary(f"/{method}")

    @fuzzed
    @given(bytes_like([each.SerializeToString() for each in VALID[method]]))
    def ask(request: bytes) -> None:
        try:
            call(request, timeout=20)
        except grpc.RpcError as error:
            code, details = error.code().name, error.details() or ""
            assert code != "UNKNOWN", details
            assert code != "UNAVAILABLE", "the server is gone"
            assert code != "INTERNAL" or details.startswith("Failed to parse the bytes"), details
            assert not any(trace in details for trace in TRACES), details

    ask()
    assert server.process.poll() is None


EDGES: dict[str, list[Any]] = {
    "int": [0, 1, -1, 31, 2**27, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -(2**63)],
    "float": [0.0, -0.0, 1.0, float("nan"), float("inf"), 1e300],
    "str": ["", "x", "inputs", "classify", "\N{GRINNING FACE}", "a" * 300],
    "bytes": [b"", b"\x00", b"\xff" * 9, b"x" * 400],
}


def kind_of(field: FieldDescriptor) -> str:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return "bytes"
    return {FieldDescriptor.CPPTYPE_STRING: "str", FieldDescriptor.CPPTYPE_FLOAT: "float",
            FieldDescriptor.CPPTYPE_DOUBLE: "float"}.get(field.cpp_type, "int")  # fmt: skip


def messages_in(message: Any) -> list[Any]:
    """Return the message and all that are set in it, of lists and maps too."""
    found = [message]
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name["value"]
            inner = list(value.values()) if entry.message_type is not None else []
        else:
            inner = list(value) if field.label == FieldDescriptor.LABEL_REPEATED else [value]
        for each in inner:
            found += messages_in(each)
    return found


@st.composite
def restructured(draw: st.DrawFn, originals: list[Any]) -> bytes:
    """Return one of `originals` with up to five fields set, repeated, cleared or copied: valid protobuf."""
    original = draw(st.sampled_from(originals))
    message = type(original)()
    message.CopyFrom(original)
    for _ in range(draw(st.integers(1, 5))):
        target = draw(st.sampled_from(messages_in(message)))
        field = draw(st.sampled_from(list(target.DESCRIPTOR.fields)))
        change = draw(st.sampled_from(["clear", "set", "set", "repeat"]))
        try:
            alter(draw, target, field, change)
        except (ValueError, TypeError):  # a number that the field cannot hold
            continue
    return bytes(message.SerializeToString())


def alter(draw: st.DrawFn, target: Any, field: FieldDescriptor, change: str) -> None:
    if change == "clear":
        target.ClearField(field.name)
        return
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key = draw(st.sampled_from(EDGES["str"]))
        entry = field.message_type.fields_by_name["value"]
        if entry.message_type is not None:
            values = list(getattr(target, field.name).values())
            if values:
                getattr(target, field.name)[key].CopyFrom(draw(st.sampled_from(values)))
            else:
                getattr(target, field.name)[key].SetInParent()
        return
    times = draw(st.sampled_from([1, 2, 33, 300])) if change == "repeat" else 1
    if field.message_type is not None:
        if field.label == FieldDescriptor.LABEL_REPEATED:
            for _ in range(times):
                getattr(target, field.name).add()
        else:
            getattr(target, field.name).SetInParent()
        return
    value = draw(st.sampled_from(EDGES[kind_of(field)]))
    if field.label == FieldDescriptor.LABEL_REPEATED:
        getattr(target, field.name).extend([value] * times)
    else:
        setattr(target, field.name, value)


def see_it_healthy(server: RunningServer) -> None:
    """See gRPC and REST answer rightly; the fuzzed reload may have taken the model away."""
    health = health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    answer = stub(server).Predict(predict_request(x=floats(1, 2)), timeout=20)
    assert list(answer.outputs["y"].float_val) == [2.5, 3.0]
    assert server.get("/livez")[0] == 200


@pytest.mark.parametrize("method", [name for name in VALID if name.startswith(PREDICTION)])
def test_messages_with_changed_fields(steady: RunningServer, method: str) -> None:
    """Valid protobuf, of any values: an answer, or a status that says what was wrong, and a healthy loop."""
    call = steady.channel.unary_unary(f"/{method}", None, None)
    sent = 0

    @fuzzed
    @given(restructured(VALID[method]))
    def ask(request: bytes) -> None:
        nonlocal sent
        try:
            call(request, timeout=20)
        except grpc.RpcError as error:
            code, details = error.code().name, error.details() or ""
            assert code not in ("UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED"), details
            assert not any(trace in details for trace in TRACES), details
        sent += 1
        if sent % BATCH == 0:
            see_it_healthy(steady)

    ask()
    see_it_healthy(steady)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """Return HTTP/2 frames: real ones of a call, with types, flags, streams, lengths and payloads changed."""
    path = draw(st.sampled_from([f"/{each}".encode() for each in VALID] + [b"/\xff\xc3", b"", b"/" * 3000]))
    names = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b"te", b"trailers"),
             (b"content-type", b"application/grpc"),
             (b"grpc-timeout", draw(st.binary(max_size=9)))]  # fmt: skip
    block = Encoder().encode(names[: draw(st.integers(0, len(names)))])
    data = draw(st.binary(max_size=40))
    payloads = [
        block,
        b"\0" + len(data).to_bytes(4, "big") + data,
        b"\x01\xff\xff\xff\xff",
        data,
        b"",
        bytes(4),
    ]
    sent = []
    for _ in range(draw(st.integers(1, 8))):
        payload = draw(st.sampled_from(payloads))
        length = draw(st.sampled_from([len(payload), len(payload), len(payload), 0, 2**14, 2**24 - 1]))
        head = bytes(
            (
                draw(st.sampled_from([0, 0, 1, 1, 3, 4, 6, 7, 8, 9, 200])),
                draw(st.integers(0, 255) | st.just(4)),
            )
        )
        stream = draw(st.sampled_from([1, 1, 1, 3, 0, 2, 2**31 - 1, 2**32 - 1]))
        sent.append(length.to_bytes(3, "big") + head + stream.to_bytes(4, "big") + payload)
    return b"".join(sent)


def test_frames_that_are_no_calls(steady: RunningServer) -> None:
    """Whatever HTTP/2 allows and forbids: the loop goes on, and other connections are answered."""
    sent = 0

    @fuzzed
    @given(st.one_of(frames(), st.binary(max_size=200)), st.booleans())
    def ask(content: bytes, has_preface: bool) -> None:
        nonlocal sent
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
        with socket.create_connection(("127.0.0.1", steady.port), timeout=20) as connection:
            try:
                connection.sendall(preface + content if has_preface else content)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(2**16):
                    pass
            except OSError:
                pass
        sent += 1
        if sent % BATCH == 0:
            see_it_healthy(steady)

    ask()
    see_it_healthy(steady)


BODIES = [
    json.dumps(body).encode()
    for body in (
        {"instances": [1.0, [2.0]]},
        {"inputs": {"a": [1], "b": [2.0]}, "signature_name": "two_inputs"},
        {
            "signature_name": "classify",
            "context": {"x": 1.0},
            "examples": [{"x": 1.0}, {"x": {"b64": "AA=="}}],
        },
        {"signature_name": "text", "instances": [{"text": {"b64": "aGk="}}]},
    )
]
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["b64", "x", "a", "b", "text", "inputs", "instances", "examples", "signature_name"]
            ),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=12,
)


def check_http(server: RunningServer, method: str, path: str, body: bytes, headers: dict[str, str]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=20)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        text = response.read().decode("utf-8", "replace")
    except (ConnectionResetError, BrokenPipeError):
        return  # refused by the head alone, with the body under way
    finally:
        connection.close()
    assert response.status not in (500, 502), text
    assert not any(trace in text for trace in TRACES[:2]), text
    if response.status != 200 and response.headers["Content-Type"] == "application/json" and method != "HEAD":
        assert not text or list(json.loads(text)) == ["error"]


@pytest.mark.parametrize("verb", ["predict", "classify", "regress"])
def test_bodies_over_rest(server: RunningServer, verb: str) -> None:
    """The answer is JSON, or {"error": …} with a code of the client's."""

    @fuzzed
    @given(st.one_of(bytes_like(BODIES), JSON.map(lambda value: json.dumps(value).encode())))
    def ask(body: bytes) -> None:
        check_http(server, "POST", f"/v1/models/{NAME}:{verb}", body, {})

    ask()
    assert server.process.poll() is None


PATH_PARTS = st.one_of(
    st.sampled_from(
        ["v1", "models", NAME, "versions", "labels", "metadata", "1", f"{NAME}:predict", "%00", ".."]
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12),
)
HEADERS = st.dictionaries(
    st.sampled_from(
        ["Content-Encoding", "Transfer-Encoding", "Origin", "Accept-Encoding", "Expect", "Range", "X-Y"]
    ),
    st.one_of(
        st.sampled_from(["gzip", "chunked", "identity", "https://x", "100-continue", "0"]),
        st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12),
    ),
    max_size=3,
)


@fuzzed
@given(
    st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "BREW"]),
    st.lists(PATH_PARTS, max_size=7),
    st.binary(max_size=20),
    HEADERS,
)
def test_paths_and_headers_over_rest(
    server: RunningServer, method: str, path: list[str], body: bytes, headers: dict[str, str]
) -> None:
    """Any path, any header."""
    check_http(server, method, "/" + "/".join(path), body, headers)


def test_after_all_that_the_server_answers(server: RunningServer) -> None:
    """It is the same process, and its log has no trace."""
    assert server.process.poll() is None
    server.get("/v1/models")
    assert "Traceback" not in server.log, server.log[-3000:]
    stub(server)  # the channel is open still
