"""The server's REST surface: paths, bodies, number formats, error texts and HTTP codes."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import socket
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_server_fixtures import DEADLINE_SECONDS, NAME, SIGNATURES, Models, RunningServer, StartServer

from model_server.api.rest import json_responses

pytest_plugins = ["model_server_fixtures"]

PREDICT = f"/v1/models/{NAME}:predict"


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({"instances": [[1.0], [3]]}, {"predictions": [[2.5], [3.5]]}),
        ({"instances": [{"x": [1.0]}]}, {"predictions": [[2.5]]}),
        ({"instances": [1.0, 2.0]}, {"predictions": [2.5, 3.0]}),
        ({"inputs": [[1.0], [3]]}, {"outputs": [[2.5], [3.5]]}),
        ({"inputs": {"x": 1.0, "ignored": 1}}, {"outputs": 2.5}),
        (
            {"signature_name": "two_inputs", "instances": [{"a": 2, "b": 3.0}, {"a": 4, "b": 5.0}]},
            {"predictions": [{"product": 6.0, "sum": 5.0}, {"product": 20.0, "sum": 9.0}]},
        ),
        (
            {"signature_name": "two_inputs", "inputs": {"a": [2, 4], "b": [3.0, 5.0]}},
            {"outputs": {"product": [6.0, 20.0], "sum": [5.0, 9.0]}},
        ),
        (
            {"signature_name": "text", "instances": ["né", {"b64": base64.b64encode(b"b").decode()}]},
            {
                "predictions": [
                    {"text": "né", "text_bytes": {"b64": base64.b64encode("né!".encode()).decode()}},
                    {"text": "b", "text_bytes": {"b64": base64.b64encode(b"b!").decode()}},
                ]
            },
        ),
        ({"signature_name": "turns", "inputs": 7}, {"outputs": 7}),
    ],
)
def test_predict_in_rows_and_in_columns(half_plus_two: RunningServer, body: Any, answer: Any) -> None:
    """Rows give "predictions", columns "outputs"; objects only where there is more than one tensor."""
    assert half_plus_two.post(PREDICT, body) == (200, answer)
    assert half_plus_two.post(PREDICT.replace(":", "/versions/1:"), body) == (200, answer)


def test_predict_writes_json_as_the_official_server_does(half_plus_two: RunningServer) -> None:
    """Whole numbers end in .0, and NaN and Infinity are bare tokens, in and out."""
    _, headers, body = half_plus_two.raw(
        "POST", PREDICT, b'{"instances": [[1.0], [2.0], [NaN], [-Infinity]]}'
    )
    assert body == b'{\n    "predictions": [[2.5], [3.0], [NaN], [-Infinity]\n    ]\n}'
    assert headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"), (1.0, "1.0"), (1e6, "1e+06"), (16777216.0, "16777216.0"), (123456.0, "123456.0"),
        (1234567.0, "1234567.0"), (0.3333333432674408, "0.333333343"), (-0.0, "-0.0"), (1e-7, "1e-07"),
    ],
)  # fmt: skip
def test_floats_are_short_where_that_is_exact(value: float, text: str) -> None:
    """Six digits if they read back as the same float32, else nine."""
    assert json_responses.decimal(float(np.float32(value)), single=True) == text


@given(st.floats(allow_nan=False), st.booleans())
def test_written_floats_read_back(value: float, single: bool) -> None:
    """No float32 and no double is changed by its way through JSON."""
    if single:
        with np.errstate(over="ignore"):
            value = float(np.float32(value))
    text = json_responses.decimal(value, single)
    read = float(np.float32(json.loads(text))) if single else float(json.loads(text))
    assert read == value
    assert any(mark in text for mark in ".eIn")


def quoted(value: Any) -> str:
    return json.dumps(value, indent=4)


ITEM = "Failed to process element: 0{} of 'instances' list. Error: INVALID_ARGUMENT: "
EVERYTHING = ("bfloat16", "bool", "complex64", "double", "half", "int64", "int8", "uint64")
BAD_BODIES: list[tuple[Any, Any, str]] = [
    (b"", 400, "JSON Parse error: The document is empty"),
    (b"{", 400, "JSON Parse error: Missing a name for object member. at offset: 1"),
    (b'{"instances": x}', 400, "JSON Parse error: Invalid value. at offset: 14"),
    (b"{} {}", 400, "JSON Parse error: The document root must not be followed by other values. at offset: 3"),
    (b"\xff\xfe", 400, "JSON Parse error: "),
    (b"[" * 100_000, 400, "JSON Parse error: "),
    (b'{"inputs": ' + b"9" * 5000 + b"}", 400, "JSON Parse error: "),
    ([1], 400, f"JSON Value: {quoted([1])} Is not object"),
    ({}, 400, "Missing 'inputs' or 'instances' key"),
    ({"signature_name": 1}, 400,
     f"JSON Value: {quoted({'signature_name': 1})} not formatted correctly. "
     "'signature_name' key must be a string value."),
    ({"signature_name": "nope"}, 400,
     'Serving signature name: "nope" not found in signature def' + SIGNATURES),
    ({"inputs": 1, "instances": 1}, 400,
     f"JSON Value: {quoted({'inputs': 1, 'instances': 1})} Not formatted correctly expecting only one of "
     "'inputs' or 'instances' keys to exist "),
    ({"instances": 1}, 400,
     f"JSON Value: {quoted({'instances': 1})} Excepting 'instances' to be an list/array"),
    ({"instances": []}, 400, f"JSON Value: {quoted({'instances': []})} No values in 'instances' array"),
    ({"instances": ["x"]}, 400,
     ITEM.format("") + 'JSON Value: "x" Type: String is not of expected type: float'),
    ({"instances": [{"x": True}]}, 400,
     ITEM.format(" key: x") + "JSON Value: true Type: True is not of expected type: float"),
    ({"instances": [{"z": 1}]}, 400, ITEM.format(" key: z") + "JSON object: does not have named input: z"),
    ({"instances": [{}]}, 400,
     "Failed to process element: 0 of 'instances' list. JSON object: {} keys must be equal to: x"),
    ({"instances": [[1], {"x": 1}]}, 400, "Expecting value/list but got object at item 1 of input list"),
    ({"instances": [{"x": 1}, [1]]}, 400, "Expecting object but got list at item 1 of input list"),
    ({"instances": [[1], [1, 2]]}, 400,
     ITEM.format("").replace("0", "1") + "Expecting tensor size: 1 but got: 2"),
    ({"instances": [[1], [[1]]]}, 400,
     ITEM.format("").replace("0", "1") + "Expecting shape [1] but got: [1,1]"),
    ({"instances": [[[1, 2], [1]]]}, 400,
     ITEM.format("") + "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    ({"instances": [[1, [1]]]}, 400,
     ITEM.format("") + "Encountered list at unexpected level: 1 expected < 1"),
    ({"instances": [[[1], 1]]}, 400,
     ITEM.format("") + "JSON Value: 1 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
    ({"instances": [16777217]}, 400,
     ITEM.format("") + "Cannot convert JSON value: 16777217 to float without loss of precision."),
    ({"instances": [1e39]}, 400, ITEM.format("") + "Cannot convert JSON value: 1e+39 to float"),
    ({"signature_name": "two_inputs", "instances": [1]}, 400,
     "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
     "tensorinfo_map"),
    ({"signature_name": "two_inputs", "inputs": [1]}, 400,
     "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
     "tensorinfo_map"),
    ({"signature_name": "two_inputs", "inputs": {"a": 1}}, 400, "Missing named input: b in 'inputs' object."),
    ({"signature_name": "two_inputs", "inputs": {"a": 1.0, "b": 1}}, 400,
     "JSON Value: 1.0 Type: Number is not of expected type: int32"),
    ({"signature_name": "text", "inputs": {"b64": "*"}}, 400, "Unable to base64 decode"),
    ({"signature_name": "text", "inputs": [{"b65": "YQ=="}]}, 400,
     f"JSON Value: {quoted({'b65': 'YQ=='})} not formatted correctly for base64 data"),
    ({"signature_name": "text", "inputs": 1}, 400,
     "JSON Value: 1 Type: Number is not of expected type: string"),
    ({"signature_name": "everything", "inputs": dict.fromkeys(EVERYTHING, 0)}, (400, 501), ""),
    ({"signature_name": "turns", "instances": [1, 2]}, 400, ""),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "text"), BAD_BODIES)
def test_predict_refuses_bad_bodies(half_plus_two: RunningServer, body: Any, status: Any, text: str) -> None:
    """Each refusal's HTTP code and text, which is all of the answer."""
    code, answer = half_plus_two.post(PREDICT, body)
    assert code == status if isinstance(status, int) else code in status
    assert list(answer) == ["error"]
    partial = not text or text.endswith((": ", "to float"))
    assert answer["error"].startswith(text) if partial else answer["error"] == text


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("POST", "/v1/models/x:predict", 404,
         f"Servable not found for request: Latest(x)\nModels in service: {NAME}"),
        ("POST", f"/v1/models/{NAME}/versions/7:predict", 404,
         f"Servable not found for request: Specific({NAME}, 7)\nVersions of {NAME} in service: 1"),
        ("POST", f"/v1/models/{NAME}/labels/canary:predict", 400,
         f"Unrecognized servable version label: canary\nLabels of {NAME}: none"),
        ("POST", f"/v1/models/{NAME}/versions/{2**64}:predict", 400,
         f"Failed to convert version: {2**64} to numeric."),
        ("POST", f"/v1/models/{NAME}:explain", 400, f"Malformed request: POST /v1/models/{NAME}:explain"),
        ("GET", f"/v1/models/{NAME}:predict", 400, f"Malformed request: GET /v1/models/{NAME}:predict"),
        ("GET", "/v1/models/x", 404, f"Could not find any versions of model x\nModels: {NAME}"),
        ("GET", f"/v1/models/{NAME}/versions/7", 404,
         f"Could not find version 7 of model {NAME}\nVersions of {NAME}: 1"),
        ("GET", "/v1/models/x/metadata", 404,
         f"Servable not found for request: Latest(x)\nModels in service: {NAME}"),
    ],
)  # fmt: skip
def test_paths_that_lead_nowhere(
    half_plus_two: RunningServer, method: str, path: str, status: int, text: str
) -> None:
    """HTTP code and text."""
    body = b'{"instances": [1.0]}' if method == "POST" else None
    code, _, answer = half_plus_two.raw(method, path, body)
    assert (code, json.loads(answer)) == (status, {"error": text})


def test_other_paths_are_plain_404s(half_plus_two: RunningServer) -> None:
    """Not JSON: they are not the API's."""
    status, headers, _ = half_plus_two.raw("GET", "/favicon.ico", None)
    assert status == 404
    assert headers["Content-Type"].startswith("text/html")


def test_status_and_metadata_print_their_defaults(half_plus_two: RunningServer) -> None:
    """Versions are strings, names are the protos' own; paths may be in any case."""
    version = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in (f"/v1/models/{NAME}", f"/V1/Models/{NAME}/Versions/1"):
        assert half_plus_two.get(path) == (200, {"model_version_status": [version]})
    status, metadata = half_plus_two.get(f"/v1/models/{NAME}/metadata")
    assert status == 200
    assert metadata["model_spec"] == {"name": NAME, "signature_name": "", "version": "1"}
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert signature["inputs"]["x"]["tensor_shape"]["unknown_rank"] is False


def test_classify_and_regress(half_plus_two: RunningServer) -> None:
    """Label and score pairs, or values; the context fills what an example lacks."""
    body: Any = {"signature_name": "classify", "examples": [{"x": 2.0}, {"x": [4.0]}]}
    answer = {"results": [[["up", 3.0], ["down", -3.0]], [["up", 4.0], ["down", -4.0]]]}
    assert half_plus_two.post(f"/v1/models/{NAME}:classify", body) == (200, answer)
    body = {"signature_name": "regress", "context": {"x": 8.0}, "examples": [{"x": 2.0}, {}]}
    assert half_plus_two.post(f"/v1/models/{NAME}:regress", body) == (200, {"results": [3.0, 6.0]})


@pytest.mark.parametrize(
    ("examples", "text"),
    [
        (None, "JSON Value: {} When method is classify, key 'examples' is expected and was not found"),
        (1, "Expecting 'examples' value to be an list/array"),
        ([], "'examples' value is an empty array"),
        ([1], "Example must be JSON object but got JSON Number"),
        ([{"x": None}], "Feature: x has element with unexpected JSON type: Null"),
        ([{"x": [[1.0]]}], "Feature: x has element with unexpected JSON type: Array"),
        ([{"x": {"a": 1}}], "Feature: x has element with unexpected JSON type: Object"),
        ([{"x": [1.0, 1]}], "Unexpected element type in feature: x expecting type: float"),
        ([{"x": [True, "a"]}], "Unexpected element type in feature: x expecting type: int64"),
        ([{"x": [{"b64": "YQ=="}, 1]}], "Unexpected element type in feature: x expecting type: bytes"),
        ([{"x": 2**63}], "Feature: x has uint64 element. Only int64 is supported."),
        ([{"x": 1e39}], "Cannot convert JSON value: 1e+39 to float without loss of precision."),
        ([{"x": 2}], "Data types don't match"),
    ],
)
def test_examples_that_are_refused(half_plus_two: RunningServer, examples: Any, text: str) -> None:
    """400 with the reason; a whole number is an int64, also where a float is wanted."""
    body = {} if examples is None else {"signature_name": "regress", "examples": examples}
    status, answer = half_plus_two.post(f"/v1/models/{NAME}:regress", body)
    assert status == 400
    assert text in answer["error"]


def test_bodies_may_be_gzip_or_chunked(half_plus_two: RunningServer) -> None:
    """And are refused, not guessed at, when they are not what they say."""
    body = json.dumps({"instances": [1.0]}).encode()
    assert half_plus_two.post(PREDICT, gzip.compress(body), Content_Encoding="gzip") == (
        200, {"predictions": [2.5]},
    )  # fmt: skip
    assert half_plus_two.post(PREDICT, body, Content_Encoding="gzip")[0] == 400
    connection = http.client.HTTPConnection("127.0.0.1", half_plus_two.rest_port, timeout=DEADLINE_SECONDS)
    connection.request("POST", PREDICT, iter([body[:5], body[5:]]), encode_chunked=True)
    assert json.loads(connection.getresponse().read()) == {"predictions": [2.5]}
    connection.request("POST", PREDICT, body)  # the connection is still good
    assert json.loads(connection.getresponse().read()) == {"predictions": [2.5]}
    connection.close()


def test_a_length_that_is_none_is_refused(half_plus_two: RunningServer) -> None:
    """The connection ends, because nobody knows where the next request begins."""
    with socket.create_connection(("127.0.0.1", half_plus_two.rest_port), DEADLINE_SECONDS) as client:
        client.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n".encode())
        received = b"".join(iter(lambda: client.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 400")


def test_preflight_requests_are_refused_by_default(half_plus_two: RunningServer) -> None:
    """CORS is off unless a flag turns it on."""
    status, headers, body = half_plus_two.raw("OPTIONS", PREDICT, None, Origin="https://example.org")
    assert (status, body) == (400, b"")
    assert "Access-Control-Allow-Origin" not in headers


def test_cors_and_the_timeout_are_flags(
    models: Models, start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Answers carry the headers, preflights need an Origin, and a slow graph is a 504."""
    base_path = tmp_path_factory.mktemp("cors")
    models.publish(base_path, 1)
    server = start_server(base_path, "--rest_api_enable_cors_support", "--rest_api_timeout_in_ms=100")
    status, headers, _ = server.raw("OPTIONS", PREDICT, None, Origin="https://example.org")
    assert (status, headers["Access-Control-Allow-Methods"]) == (200, "POST, GET")
    assert server.raw("OPTIONS", PREDICT, None)[0] == 400
    assert server.raw("GET", f"/v1/models/{NAME}", None)[1]["Access-Control-Allow-Origin"] == "*"
    assert server.post(PREDICT, {"signature_name": "turns", "inputs": 10**12})[0] == 504
    assert server.post(PREDICT, {"instances": [1.0]}) == (200, {"predictions": [2.5]})
