"""The server's gRPC surface: answers, error codes and texts, as tensorflow_model_server 2.15.1 gives them."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_server_fixtures import NAME, SIGNATURES, Models, RunningServer, StartServer, expected, wait_until

pytest_plugins = ["model_server_fixtures"]

# ruff: noqa: E402 (the protos import all of TensorFlow)
from model_server_requests import (
    TIMEOUT,
    asked,
    classify_request,
    error_of,
    example,
    floats,
    ints,
    predict_request,
    regress_request,
    spec,
    stub,
    turns_request,
)
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    regression_pb2,
)


def test_predict_answers_in_typed_fields_with_the_resolved_version(half_plus_two: RunningServer) -> None:
    """Half plus two of two rows is in float_val, tensor_content stays empty, the spec says version 1."""
    answer = stub(half_plus_two).Predict(predict_request(x=floats(1, 3)), timeout=TIMEOUT)
    assert list(answer.outputs["y"].float_val) == [2.5, 3.5]
    assert answer.outputs["y"].tensor_content == b""
    assert [dim.size for dim in answer.outputs["y"].tensor_shape.dim] == [2, 1]
    assert answer.model_spec == spec(version=1, signature="serving_default")


def test_predict_reads_tensor_content_as_well_as_typed_fields(half_plus_two: RunningServer) -> None:
    """What tf.make_tensor_proto sends is understood."""
    request = predict_request(x=floats(shape=(2, 1)))
    request.inputs["x"].tensor_content = b"\x00\x00\x80\x3f\x00\x00\x40\x40"
    answer = stub(half_plus_two).Predict(request, timeout=TIMEOUT)
    assert list(answer.outputs["y"].float_val) == [2.5, 3.5]


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3), (), (0, 1)])
def test_predict_does_not_check_shapes_against_the_signature(
    half_plus_two: RunningServer, shape: tuple[int, ...]
) -> None:
    """Only the ops refuse shapes; zero rows run as well."""
    proto = floats(1, 1, 1, shape=shape) if shape else tensor_pb2.TensorProto(dtype=1, float_val=[1])
    answer = stub(half_plus_two).Predict(predict_request(x=proto), timeout=TIMEOUT)
    values = list(answer.outputs["y"].float_val)
    assert values == [2.5] * (0 if 0 in shape else 3 if shape else 1)


def test_predict_keeps_every_type(half_plus_two: RunningServer) -> None:
    """Each dtype goes in and comes out in its own field of the TensorProto."""
    sent = {
        "double": tensor_pb2.TensorProto(dtype=types_pb2.DT_DOUBLE, double_val=[0.1]),
        "int8": tensor_pb2.TensorProto(dtype=types_pb2.DT_INT8, int_val=[-7]),
        "int64": tensor_pb2.TensorProto(dtype=types_pb2.DT_INT64, int64_val=[2**62]),
        "bool": tensor_pb2.TensorProto(dtype=types_pb2.DT_BOOL, bool_val=[True]),
        "uint64": tensor_pb2.TensorProto(dtype=types_pb2.DT_UINT64, uint64_val=[2**63]),
        "half": tensor_pb2.TensorProto(dtype=types_pb2.DT_HALF, half_val=[0x3C00]),
        "bfloat16": tensor_pb2.TensorProto(dtype=types_pb2.DT_BFLOAT16, half_val=[0x3F80]),
        "complex64": tensor_pb2.TensorProto(dtype=types_pb2.DT_COMPLEX64, scomplex_val=[1, -2]),
    }
    for proto in sent.values():
        proto.tensor_shape.SetInParent()
    answer = stub(half_plus_two).Predict(
        predict_request(spec(signature="everything"), **sent), timeout=TIMEOUT
    )
    assert dict(answer.outputs) == sent


def test_predict_answers_a_scalar_string(half_plus_two: RunningServer) -> None:
    """Bytes that are no text come back as they went."""
    proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[b"\xff\x00"])
    proto.tensor_shape.dim.add(size=1)
    answer = stub(half_plus_two).Predict(
        predict_request(spec(signature="text"), ("text",), text=proto), timeout=TIMEOUT
    )
    assert list(answer.outputs["text"].string_val) == [b"\xff\x00"]
    assert list(answer.outputs) == ["text"]


def test_predict_uses_the_defaults_of_the_signature(half_plus_two: RunningServer) -> None:
    """An input that the request lacks is taken from SignatureDef.defaults."""
    answer = stub(half_plus_two).Predict(
        predict_request(spec(signature="defaulted"), a=ints(1, 2)), timeout=TIMEOUT
    )
    assert list(answer.outputs["sum"].float_val) == [11.0, 12.0]


def test_predict_runs_classify_and_regress_signatures(half_plus_two: RunningServer) -> None:
    """Their alias is "inputs": one-dimensional, serialized Examples."""
    proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[example(x=4).SerializeToString()])
    proto.tensor_shape.dim.add(size=1)
    answer = stub(half_plus_two).Predict(
        predict_request(spec(signature="regress"), inputs=proto), timeout=TIMEOUT
    )
    assert list(answer.outputs["outputs"].float_val) == [4.0]


BAD_PREDICTS: dict[str, tuple[predict_pb2.PredictRequest, str, str]] = {
    "no spec": (predict_pb2.PredictRequest(), "INVALID_ARGUMENT", "Missing ModelSpec"),
    "no name": (predict_request(spec("")), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    "unknown model": (
        predict_request(spec("x")), "NOT_FOUND",
         f"Servable not found for request: Latest(x)\nModels in service: {NAME}",
    ),
    "unknown version": (
        predict_request(spec(version=7)), "NOT_FOUND",
        f"Servable not found for request: Specific({NAME}, 7)\nVersions of {NAME} in service: 1",
    ),
    "version 0": (
        predict_request(spec(version=0)), "NOT_FOUND",
        f"Servable not found for request: Specific({NAME}, 0)\nVersions of {NAME} in service: 1",
    ),
    "label": (
        predict_request(spec(label="canary")), "INVALID_ARGUMENT",
        f"Unrecognized servable version label: canary\nLabels of {NAME}: none",
    ),
    "signature": (
        predict_request(spec(signature="nope")), "FAILED_PRECONDITION",
        'Serving signature key "nope" not found.' + SIGNATURES,
    ),
    "too few inputs": (
        predict_request(), "INVALID_ARGUMENT",
        "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. "
        "Missing but required: {x}.",
    ),
    "too many inputs": (
        predict_request(z=floats(1), x=floats(1), a=floats(1)), "INVALID_ARGUMENT",
        "input size does not match signature: 3!=1 len({a,x,z}) != len({x}). Sent extra: {a,z}. "
        "Missing but required: {}.",
    ),
    "wrong input": (
        predict_request(z=floats(1)), "INVALID_ARGUMENT",
        "Signature input alias: x(feed name: x:0) not found in request and no default value provided. "
        "Inputs expected to be in the request {z}, or default input alias set: ",
    ),
    "extra input beside a default": (
        predict_request(spec(signature="defaulted"), a=ints(1), c=ints(1)), "INVALID_ARGUMENT",
        "Inputs contains invalid name. Used request inputs: a,b, request input: a,c",
    ),
    "bad tensor": (
        predict_request(x=floats(shape=(-1, 1))), "INVALID_ARGUMENT", "tensor parsing error: x",
    ),
    "tensor without type": (
        predict_request(x=tensor_pb2.TensorProto()), "INVALID_ARGUMENT", "tensor parsing error: x",
    ),
    "unknown output": (
        predict_request(output_filter=("z",), x=floats(1)), "INVALID_ARGUMENT",
        "output tensor alias not found in signature: z Outputs expected to be in the set {y}.",
    ),
    "output twice": (
        predict_request(output_filter=("y", "y"), x=floats(1)), "INVALID_ARGUMENT",
        "duplicate output tensor alias: y",
    ),
    "type": (
        predict_request(x=ints(1, shape=(1, 1))), "INVALID_ARGUMENT",
        "Expects arg[0] to be float but int32 is provided",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_PREDICTS)
def test_predict_says_what_is_wrong_in_the_official_words(half_plus_two: RunningServer, case: str) -> None:
    """Code and text of each refusal."""
    request, code, text = BAD_PREDICTS[case]
    assert error_of(stub(half_plus_two).Predict, request) == (code, text)


def test_errors_of_ops_come_raw(half_plus_two: RunningServer) -> None:
    """The text is the op's own, with its node, without Python's additions."""
    proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[b"garbage"])
    proto.tensor_shape.dim.add(size=1)
    code, text = error_of(
        stub(half_plus_two).Predict, predict_request(spec(signature="regress"), inputs=proto)
    )
    assert code == "INVALID_ARGUMENT"
    assert text.startswith("Could not parse example input, value: 'garbage'\n\t [[{{node ")


def test_long_messages_are_cut(half_plus_two: RunningServer) -> None:
    """1024 characters, then a mark."""
    _, text = error_of(stub(half_plus_two).Predict, predict_request(spec("n" * 5000)))
    assert len(text) == 1024 + len("...TRUNCATED")
    assert text.endswith("nnn...TRUNCATED")


def test_the_clients_deadline_stops_the_graph(half_plus_two: RunningServer) -> None:
    """A run past its deadline ends in the server too, which then answers others at once."""
    for _ in range(20):  # more than there are threads
        code, _ = error_of(stub(half_plus_two).Predict, turns_request(10**12), timeout=0.05)
        assert code == "DEADLINE_EXCEEDED"
    answer = stub(half_plus_two).Predict(predict_request(x=floats(1)), timeout=5)
    assert list(answer.outputs["y"].float_val) == [2.5]


def test_regress_answers_one_value_an_example(half_plus_two: RunningServer) -> None:
    """From outputs of shape [n, 1] as well as [n]."""
    for signature in ("regress", "regress_flat"):
        answer = stub(half_plus_two).Regress(regress_request(signature, 2, 4), timeout=TIMEOUT)
        assert [each.value for each in answer.result.regressions] == [3.0, 4.0]
        assert answer.model_spec == spec(version=1, signature=signature)


def test_classify_answers_labels_and_scores(half_plus_two: RunningServer) -> None:
    """One row an Example, one class a column."""
    answer = stub(half_plus_two).Classify(classify_request("classify", 2, 4), timeout=TIMEOUT)
    rows = [[(c.label, c.score) for c in row.classes] for row in answer.result.classifications]
    assert rows == [[("up", 3.0), ("down", -3.0)], [("up", 4.0), ("down", -4.0)]]
    assert answer.model_spec == spec(version=1, signature="classify")


def test_classify_leaves_empty_what_the_signature_lacks(half_plus_two: RunningServer) -> None:
    """No classes are empty labels, no scores are zeros."""
    scores = stub(half_plus_two).Classify(classify_request("scores_only", 2), timeout=TIMEOUT)
    classes = stub(half_plus_two).Classify(classify_request("classes_only", 2), timeout=TIMEOUT)
    assert [(c.label, c.score) for c in scores.result.classifications[0].classes] == [("", 3.0), ("", -3.0)]
    assert [(c.label, c.score) for c in classes.result.classifications[0].classes] == [("up", 0), ("down", 0)]


def test_an_example_wins_over_its_context(half_plus_two: RunningServer) -> None:
    """The context's features count where the example has none of that name."""
    listed = input_pb2.ExampleListWithContext(context=example(x=8), examples=[example(), example(x=2)])
    request = regression_pb2.RegressionRequest(
        model_spec=spec(signature="regress"), input=input_pb2.Input(example_list_with_context=listed)
    )
    answer = stub(half_plus_two).Regress(request, timeout=TIMEOUT)
    assert [each.value for each in answer.result.regressions] == [6.0, 3.0]


BAD_EXAMPLES: dict[str, tuple[str, str, str]] = {
    "Classify nope": ("nope", "No signature was found with the name: nope" + SIGNATURES, "Classify"),
    "Classify inputs": ("two_inputs", "Expected one input Tensor.", "Classify"),
    "Classify alias": ("serving_default", "No classification inputs found in SignatureDef: ", "Classify"),
    "Classify outputs": (
        "no_scores",
        'Expected classification signature outputs to contain at least one of "classes" or "scores". '
        "Signature was: ",
        "Classify",
    ),
    "Classify flat": (
        "flat_scores", "Expected Tensor shape: [batch_size num_classes] but got [2]", "Classify",
    ),
    "Classify dtype": (
        "double_scores", "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE", "Classify",
    ),
    "Classify batch": ("one_row", "Expected scores output batch size of 2. Got: 1", "Classify"),
    "Classify columns": (
        "uneven", "Tensors class and score should match in dim_size(1). Got 2 vs. 1", "Classify",
    ),
    "Regress nope": ("nope", "No signature was found with the name: nope" + SIGNATURES, "Regress"),
    "Regress inputs": ("two_inputs", "Expected one input Tensor.", "Regress"),
    "Regress two outputs": ("classify", "Expected one output Tensor.", "Regress"),
    "Regress alias": ("serving_default", "No regression inputs found in SignatureDef: ", "Regress"),
    "Regress output": ("no_scores", "No regression outputs found in SignatureDef: ", "Regress"),
    "Regress wide": (
        "wide_outputs",
        "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,2]",
        "Regress",
    ),
    "Regress batch": (
        "one_output", "Input batch size did not match output batch size: 2 vs. 1", "Regress",
    ),
    "Regress dtype": (
        "double_outputs", "Expected output Tensor of DT_FLOAT.  Got: DT_DOUBLE", "Regress",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_EXAMPLES)
def test_signatures_that_do_not_fit_are_named(half_plus_two: RunningServer, case: str) -> None:
    """Classify and Regress look at the signature before, and at the result after the run."""
    signature, text, method = BAD_EXAMPLES[case]
    request = classify_request(signature, 1, 2) if method == "Classify" else regress_request(signature, 1, 2)
    code, details = error_of(getattr(stub(half_plus_two), method), request)
    assert code == "INVALID_ARGUMENT"
    assert details.startswith(text) if text.endswith(": ") else details == text


def test_no_examples_are_an_error_after_a_bad_signature(half_plus_two: RunningServer) -> None:
    """An empty list, an absent input, and which of two errors comes first."""
    empty = "Input is empty."
    assert error_of(stub(half_plus_two).Classify, classify_request("classify")) == ("INVALID_ARGUMENT", empty)
    without = regression_pb2.RegressionRequest(model_spec=spec(signature="regress"))
    assert error_of(stub(half_plus_two).Regress, without) == ("INVALID_ARGUMENT", empty)
    assert "No signature" in error_of(stub(half_plus_two).Classify, classify_request("nope"))[1]


def task(method: str, signature: str, name: str = NAME) -> inference_pb2.InferenceTask:
    return inference_pb2.InferenceTask(
        model_spec=spec(name, signature=signature), method_name=f"tensorflow/serving/{method}"
    )


def test_multi_inference_answers_in_task_order(half_plus_two: RunningServer) -> None:
    """One run of the graph, one result a task, each with its own spec."""
    request = inference_pb2.MultiInferenceRequest(
        tasks=[task("regress", "regress"), task("classify", "scores_only")], input=asked(2)
    )
    results = stub(half_plus_two).MultiInference(request, timeout=TIMEOUT).results
    assert results[0].regression_result.regressions[0].value == 3.0
    assert results[1].classification_result.classifications[0].classes[1].score == -3.0
    assert [r.model_spec.signature_name for r in results] == ["regress", "scores_only"]


@pytest.mark.parametrize(
    ("tasks", "code", "text"),
    [
        ([], "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ([("regress", "regress"), ("regress", "regress", "")], "INVALID_ARGUMENT",
         "Found ModelSpec with an empty model name."),
        ([("regress", "regress"), ("regress", "regress", "x")], "INVALID_ARGUMENT",
         "All ModelSpecs in a MultiInferenceRequest must access the same model name."),
        ([("regress", "regress"), ("classify", "regress")], "INVALID_ARGUMENT",
         "Duplicate evaluation of signature: regress"),
        ([("regress", "nope")], "INVALID_ARGUMENT",
         "Requested signature not found in model graph: nope" + SIGNATURES),
        ([("predict", "regress")], "UNIMPLEMENTED",
         "Unsupported signature method_name: tensorflow/serving/predict"),
    ],
)  # fmt: skip
def test_multi_inference_refuses(
    half_plus_two: RunningServer, tasks: list[tuple[str, ...]], code: str, text: str
) -> None:
    """Each refusal's code and text."""
    request = inference_pb2.MultiInferenceRequest(tasks=[task(*each) for each in tasks], input=asked(2))
    assert error_of(stub(half_plus_two).MultiInference, request) == (code, text)


def test_metadata_holds_every_signature(half_plus_two: RunningServer) -> None:
    """As SignatureDefMap in an Any; the spec has the version and no signature."""
    request = get_model_metadata_pb2.GetModelMetadataRequest(
        model_spec=spec(), metadata_field=["signature_def"]
    )
    answer = stub(half_plus_two).GetModelMetadata(request, timeout=TIMEOUT)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["serving_default"].inputs["x"].name == "x:0"
    assert answer.model_spec == spec(version=1)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ([], "GetModelMetadataRequest must specify at least one metadata_field"),
        (["signature_def", "assets"], "Metadata field assets is not supported"),
    ],
)
def test_metadata_refuses_other_fields(half_plus_two: RunningServer, fields: list[str], text: str) -> None:
    """Only signature_def is served."""
    request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec(), metadata_field=fields)
    assert error_of(stub(half_plus_two).GetModelMetadata, request) == ("INVALID_ARGUMENT", text)


def test_status_of_models_and_versions(half_plus_two: RunningServer) -> None:
    """AVAILABLE with an OK status; unknown names and numbers are NOT_FOUND; labels are ignored."""
    service = model_service_pb2_grpc.ModelServiceStub(half_plus_two.channel)
    request = get_model_status_pb2.GetModelStatusRequest
    for model_spec in (spec(), spec(version=1), spec(label="canary")):
        answer = service.GetModelStatus(request(model_spec=model_spec), timeout=TIMEOUT)
        assert [(v.version, v.state, v.status.error_code) for v in answer.model_version_status] == [
            (1, 30, 0)
        ]
    assert error_of(service.GetModelStatus, request(model_spec=spec("x"))) == (
        "NOT_FOUND", f"Could not find any versions of model x\nModels: {NAME}",
    )  # fmt: skip
    assert error_of(service.GetModelStatus, request(model_spec=spec(version=9))) == (
        "NOT_FOUND", f"Could not find version 9 of model {NAME}\nVersions of {NAME}: 1",
    )  # fmt: skip
    assert error_of(service.GetModelStatus, request()) == ("INVALID_ARGUMENT", "Missing ModelSpec")


def test_health_is_per_model_and_overall(half_plus_two: RunningServer) -> None:
    """SERVING under every name that clients of the official server ask for; others are NOT_FOUND."""
    health = health_pb2_grpc.HealthStub(half_plus_two.channel)
    for service in ("", NAME, "PredictionService", "ModelService", "tensorflow.serving.PredictionService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert error_of(health.Check, health_pb2.HealthCheckRequest(service="x"))[0] == "NOT_FOUND"


def test_method_names_are_checked_on_request(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """With --enable_signature_method_name_check a signature of another kind is refused."""
    models.publish(tmp_path, 1)
    server = start_server(tmp_path, "--enable_signature_method_name_check")
    assert error_of(stub(server).Predict, predict_request(spec(signature="two_inputs"), a=ints(1))) == (
        "INTERNAL",
        "Expected prediction signature method_name to be one of {tensorflow/serving/predict, "
        "tensorflow/serving/classify, tensorflow/serving/regress}. Was: p",
    )
    assert error_of(stub(server).Classify, classify_request("regress", 1)) == (
        "INVALID_ARGUMENT",
        "Expected classification signature method_name to be tensorflow/serving/classify. "
        "Was: tensorflow/serving/regress",
    )
    assert error_of(stub(server).Regress, regress_request("classify", 1)) == (
        "INVALID_ARGUMENT",
        "Expected regression signature method_name to be tensorflow/serving/regress. "
        "Was: tensorflow/serving/classify",
    )
    status, answer = server.post(
        f"/v1/models/{NAME}:predict", {"signature_name": "two_inputs", "inputs": {"a": [1], "b": [1.0]}}
    )
    assert status == 500
    assert "Expected prediction signature method_name" in answer["error"]
    assert server.stop() == 0


METHODS = (
    "PredictionService/Predict",
    "PredictionService/Classify",
    "PredictionService/Regress",
    "PredictionService/MultiInference",
    "PredictionService/GetModelMetadata",
    "ModelService/GetModelStatus",
    "ModelService/HandleReloadConfigRequest",
)
_SEEDS = [
    predict_request(x=floats(1, 2)).SerializeToString(),
    classify_request("classify", 1).SerializeToString(),
    predict_request(spec(signature="text"), text=tensor_pb2.TensorProto(dtype=7, tensor_content=b"\x01a"))
    .SerializeToString(),
]  # fmt: skip


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(_SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=st.sampled_from(METHODS), data=st.binary(max_size=64) | mangled())
def test_no_bytes_crash_the_server(half_plus_two: RunningServer, method: str, data: bytes) -> None:
    """Whatever a client sends gets an answer or a status, never UNKNOWN and never a stack trace."""
    call = half_plus_two.channel.unary_unary(
        f"/tensorflow.serving.{method}", request_serializer=bytes, response_deserializer=bytes
    )
    failure = call.future(data, timeout=TIMEOUT).exception()
    if failure is not None:
        assert isinstance(failure, grpc.RpcError)
        assert failure.code() is not grpc.StatusCode.UNKNOWN, failure.details()
        assert "Traceback" not in str(failure.details())
    assert half_plus_two.is_alive


def test_the_fuzzed_server_still_answers(half_plus_two: RunningServer) -> None:
    """And has logged no stack trace until now."""
    answer = stub(half_plus_two).Predict(predict_request(x=floats(6)), timeout=TIMEOUT)
    assert list(answer.outputs["y"].float_val) == [expected(6)]
    assert "Traceback" not in half_plus_two.log


def test_32_callers_are_all_answered(half_plus_two: RunningServer) -> None:
    """More callers than threads wait their turn; none is refused."""
    calls = [
        stub(half_plus_two).Predict.future(predict_request(x=floats(float(i))), timeout=TIMEOUT)
        for i in range(320)
    ]
    assert [call.result().outputs["y"].float_val[0] for call in calls] == [expected(i) for i in range(320)]
    wait_until(lambda: half_plus_two.is_alive, "the server to live")
