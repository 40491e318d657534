"""Clients of the served digits: they ask over gRPC with the real tensorflow-serving-api stubs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
from closed_loops import ClosedLoop
from slipway_command import Finished, Slipway

Labelled = tuple[list[bytes], list[int]]


def held_out(finished: Finished, slipway: Slipway) -> Labelled:
    """Return the run's eval and sample examples, serialized, and their labels: training never saw them."""
    import tensorflow as tf

    folder = slipway.home / "runs" / "digits" / finished.verdict["run_id"] / "examples"
    files = sorted(str(file) for split in ("eval", "sample") for file in folder.glob(f"{split}-*"))
    records = [record for file in files for record in records_in(file)]
    examples = [tf.train.Example.FromString(record) for record in records]
    return records, [example.features.feature["label"].int64_list.value[0] for example in examples]


def records_in(file: str) -> Iterator[bytes]:
    """Read a file of a run's examples; a later run compresses it."""
    import tensorflow as tf

    packed = tf.io.TFRecordOptions(compression_type="GZIP" if file.endswith(".gz") else "")
    return iter(tf.compat.v1.io.tf_record_iterator(file, packed))


def _request(records: list[bytes]):  # type: ignore[no-untyped-def]
    from tensorflow_serving.apis import classification_pb2

    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = "digits"
    for record in records:
        request.input.example_list.examples.add().ParseFromString(record)
    return request


def served_accuracy(address: str, records: list[bytes], labels: list[int]) -> float:
    """Return the share of examples whose highest score is at their label."""
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        response = stub.Classify(_request(records), timeout=30)
    answers = [max(row.classes, key=lambda c: c.score).label for row in response.result.classifications]
    assert len(answers) == len(labels)
    return sum(answer == str(label) for answer, label in zip(answers, labels, strict=True)) / len(labels)


class DigitsLoop(ClosedLoop):
    """Asks about held-out digits, one after the other."""

    def __init__(self, address: str, labelled: Labelled) -> None:
        super().__init__()
        self._address, self._records = address, labelled[0]

    @property
    def versions(self) -> list[int]:
        """Versions in the order in which they answered, each run of the same one noted once."""
        return self.seen

    @contextmanager
    def _asking(self) -> Iterator[Callable[[], int]]:
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        requests = itertools.cycle([_request([record]) for record in self._records[:50]])
        with grpc.insecure_channel(self._address) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            yield lambda: int(stub.Classify(next(requests), timeout=20).model_spec.version.value)
