"""Bytes that nobody meant: on every method over a real channel, and on REST. Never a crash, never a trace."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable
from typing import Any

import grpc
import pytest
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

from model_server import profiler_service

PREDICTION, MODEL = "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"
# What a stack trace, or an exception that nobody foresaw, looks like in an answer.
TRACES = ("Traceback", 'File "', "Error: ", "Exception calling application")
fuzzed = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


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
