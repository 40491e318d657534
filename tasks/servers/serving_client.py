"""PredictionService and ModelService of a TensorFlow Serving, over gRPC; every call has a deadline.

Importing this imports all of TensorFlow (its protos do): only programs in `in_tensorflow/` do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    input_pb2,
    model_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tasks.core.errors import SmokeTestFailed
from tasks.servers import grpc_channels

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Answer:
    """What the server answered, which version of the model did, and in how many seconds."""

    outputs: Mapping[str, Array]
    version: int
    seconds: float


class ServingClient:
    """A client of one model at one address (`host:port`). Raises SmokeTestFailed where a call fails.

    With `tls` it takes whatever certificate the server shows: that server is Slipway's, on this machine.
    """

    def __init__(self, address: str, model_name: str, timeout_seconds: float, tls: bool = False) -> None:
        self._model_name = model_name
        self._timeout_seconds = timeout_seconds
        self._channel = _channel(address, timeout_seconds, tls)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def __enter__(self) -> ServingClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def predict(self, signature: str, inputs: Mapping[str, Array]) -> Answer:
        """Ask Predict; `inputs` maps aliases to arrays whose first dimension is the batch."""
        request = predict_pb2.PredictRequest(model_spec=self._spec(signature))
        for alias, array in inputs.items():
            request.inputs[alias].CopyFrom(tf.make_tensor_proto(array))
        response, seconds = self._call("Predict", self._stub.Predict, request)
        outputs = {alias: tf.make_ndarray(proto) for alias, proto in response.outputs.items()}
        return Answer(outputs, response.model_spec.version.value, seconds)

    def classify(self, signature: str, examples: Sequence[bytes]) -> Answer:
        """Ask Classify about serialized tf.Examples: `classes` (bytes) and `scores` (float32), [n, k]."""
        request = classification_pb2.ClassificationRequest(
            model_spec=self._spec(signature), input=_example_list(examples)
        )
        response, seconds = self._call("Classify", self._stub.Classify, request)
        rows = [row.classes for row in response.result.classifications]
        outputs = {
            "classes": np.array([[c.label.encode() for c in row] for row in rows], dtype=object),
            "scores": np.array([[c.score for c in row] for row in rows], dtype=np.float32),
        }
        return Answer(outputs, response.model_spec.version.value, seconds)

    def regress(self, signature: str, examples: Sequence[bytes]) -> Answer:
        """Ask Regress about serialized tf.Examples: `outputs` (float32), [n]."""
        request = regression_pb2.RegressionRequest(
            model_spec=self._spec(signature), input=_example_list(examples)
        )
        response, seconds = self._call("Regress", self._stub.Regress, request)
        values = [regression.value for regression in response.result.regressions]
        outputs = {"outputs": np.array(values, dtype=np.float32)}
        return Answer(outputs, response.model_spec.version.value, seconds)

    def signatures(self) -> dict[str, Any]:
        """Return the SignatureDefs of the version that answers, by name."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self._spec(""), metadata_field=["signature_def"]
        )
        response, _ = self._call("GetModelMetadata", self._stub.GetModelMetadata, request)
        found = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(found)
        return dict(found.signature_def)

    def _spec(self, signature: str) -> model_pb2.ModelSpec:
        return model_pb2.ModelSpec(name=self._model_name, signature_name=signature)

    def _call(self, name: str, method: Callable[..., Any], request: Any) -> tuple[Any, float]:
        started = time.perf_counter()
        try:
            response = method(request, timeout=self._timeout_seconds)
        except grpc.RpcError as error:
            signature = request.model_spec.signature_name or "(default)"
            raise SmokeTestFailed(
                f"{name} of {self._model_name}, signature {signature}: {error.code().name}: {error.details()}"
            ) from None
        return response, time.perf_counter() - started


def _channel(address: str, timeout_seconds: float, tls: bool) -> grpc.Channel:
    try:
        return grpc_channels.open_channel(address, timeout_seconds, tls)
    except OSError as error:  # ssl.SSLError is one
        raise SmokeTestFailed(f"{address} shows no certificate: {error}") from None


def _example_list(examples: Sequence[bytes]) -> input_pb2.Input:
    message = input_pb2.Input()
    for serialized in examples:
        message.example_list.examples.add().ParseFromString(serialized)
    return message
