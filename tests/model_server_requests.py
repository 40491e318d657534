"""Requests to the half_plus_two model of model_server_fixtures, as clients build them."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from model_server_fixtures import NAME, Endpoint
from tensorflow.core.example import example_pb2
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    input_pb2,
    model_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

TIMEOUT = 30.0  # seconds


def stub(server: Endpoint) -> Any:
    return prediction_service_pb2_grpc.PredictionServiceStub(server.channel)


def spec(
    name: str = NAME, version: int | None = None, signature: str = "", label: str | None = None
) -> model_pb2.ModelSpec:
    made = model_pb2.ModelSpec(name=name, signature_name=signature)
    if version is not None:
        made.version.value = version
    if label is not None:
        made.version_label = label
    return made


def floats(*values: float, shape: tuple[int, ...] | None = None) -> tensor_pb2.TensorProto:
    proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=values)
    for size in shape or (len(values), 1):
        proto.tensor_shape.dim.add(size=size)
    return proto


def ints(*values: int, shape: tuple[int, ...] | None = None) -> tensor_pb2.TensorProto:
    proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_INT32, int_val=values)
    for size in shape if shape is not None else (len(values),):
        proto.tensor_shape.dim.add(size=size)
    return proto


def predict_request(
    model_spec: model_pb2.ModelSpec | None = None,
    output_filter: tuple[str, ...] = (),
    **inputs: tensor_pb2.TensorProto,
) -> predict_pb2.PredictRequest:
    return predict_pb2.PredictRequest(
        model_spec=model_spec or spec(), inputs=inputs, output_filter=output_filter
    )


def example(**features: float) -> example_pb2.Example:
    made = example_pb2.Example()
    for name, value in features.items():
        made.features.feature[name].float_list.value.append(value)
    return made


def asked(*xs: float) -> input_pb2.Input:
    return input_pb2.Input(example_list=input_pb2.ExampleList(examples=[example(x=x) for x in xs]))


def error_of(call: Any, request: Any, timeout: float = TIMEOUT) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=timeout)
    return caught.value.code().name, caught.value.details() or ""


def classify_request(signature: str, *xs: float) -> classification_pb2.ClassificationRequest:
    return classification_pb2.ClassificationRequest(model_spec=spec(signature=signature), input=asked(*xs))


def regress_request(signature: str, *xs: float) -> regression_pb2.RegressionRequest:
    return regression_pb2.RegressionRequest(model_spec=spec(signature=signature), input=asked(*xs))


def turns_request(count: int) -> predict_pb2.PredictRequest:
    """Keep the graph busy for `count` turns of a loop."""
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_INT64, int64_val=[count])
    return predict_request(spec(signature="turns"), turns=tensor)
