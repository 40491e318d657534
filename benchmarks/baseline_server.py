"""The server that one would write in an afternoon: grpcio's thread pool, parsed protos, Session.run.

`python baseline_server.py DIRECTORY PORT` serves Predict and Classify of one SavedModel. It is what
`make bench-server` measures the model server against.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

DEFAULT_SIGNATURE = "serving_default"


class Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers from one session."""

    def __init__(self, session: Any, signatures: Any) -> None:
        self._session = session
        self._signatures = signatures

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: ARG002, D102, N802
        signature = self._signature(request)
        feeds = {
            signature.inputs[alias].name: tf.make_ndarray(tensor) for alias, tensor in request.inputs.items()
        }
        aliases = list(request.output_filter) or sorted(signature.outputs)
        values = self._session.run([signature.outputs[alias].name for alias in aliases], feeds)
        response = predict_pb2.PredictResponse()
        response.model_spec.CopyFrom(request.model_spec)
        for alias, value in zip(aliases, values, strict=True):
            # Typed fields, as clients expect them: make_tensor_proto would write tensor_content.
            proto = response.outputs[alias]
            proto.dtype = signature.outputs[alias].dtype
            for size in value.shape:
                proto.tensor_shape.dim.add(size=size)
            getattr(proto, _FIELDS[proto.dtype]).extend(value.reshape(-1).tolist())
        return response

    def Classify(self, request: Any, context: Any) -> Any:  # noqa: ARG002, D102, N802
        signature = self._signature(request)
        examples = [example.SerializeToString() for example in request.input.example_list.examples]
        labels, scores = self._session.run(
            [signature.outputs["classes"].name, signature.outputs["scores"].name],
            {signature.inputs["inputs"].name: examples},
        )
        response = classification_pb2.ClassificationResponse()
        response.model_spec.CopyFrom(request.model_spec)
        for row_labels, row_scores in zip(labels, scores, strict=True):
            row = response.result.classifications.add()
            for label, score in zip(row_labels, row_scores, strict=True):
                row.classes.add(label=label.decode(), score=score)
        return response

    def _signature(self, request: Any) -> Any:
        return self._signatures[request.model_spec.signature_name or DEFAULT_SIGNATURE]


_FIELDS = {
    tf.float32.as_datatype_enum: "float_val",
    tf.int32.as_datatype_enum: "int_val",
    tf.int64.as_datatype_enum: "int64_val",
    tf.string.as_datatype_enum: "string_val",
}


def main() -> None:
    """Serve until killed."""
    directory, port = sys.argv[1:]
    session = tf.compat.v1.Session(graph=tf.Graph())
    meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], directory)
    server = grpc.server(ThreadPoolExecutor(32))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        Predictions(session, meta_graph.signature_def), server
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
