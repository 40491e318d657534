"""What the tests of the examples ask a served model with: held-out examples, and the real stubs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from served_digits import records_in
from slipway_command import Finished, Slipway


def held_out(finished: Finished, slipway: Slipway) -> list[Any]:
    """Return the run's eval and sample examples as tf.train.Examples: training never saw them."""
    import tensorflow as tf

    verdict = finished.verdict
    folder = slipway.home / "runs" / verdict["pipeline"] / verdict["run_id"] / "examples"
    files = sorted(str(file) for split in ("eval", "sample") for file in folder.glob(f"{split}-*"))
    return [
        tf.train.Example.FromString(record) for file in files for record in records_in(file)
    ]  # fmt: skip


def server_log(finished: Finished, slipway: Slipway) -> str:
    """Return what the model's server, a process, has logged."""
    return (slipway.home / "servers" / f"{finished.verdict['pipeline']}.log").read_text()


@contextmanager
def asked(finished: Finished) -> Iterator[Any]:
    """A PredictionService stub of the endpoint that the verdict names."""
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    with grpc.insecure_channel(finished.verdict["endpoint"]["grpc"]) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def request_about(kind: str, finished: Finished, signature: str, examples: list[Any]) -> Any:
    """Return a ClassificationRequest or RegressionRequest about tf.Examples, by signature name."""
    from tensorflow_serving.apis import classification_pb2, regression_pb2

    requests = {
        "classify": classification_pb2.ClassificationRequest,
        "regress": regression_pb2.RegressionRequest,
    }
    request = requests[kind]()
    request.model_spec.name = finished.verdict["pipeline"]
    request.model_spec.signature_name = signature
    request.input.example_list.examples.extend(examples)
    return request
