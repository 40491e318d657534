"""Golden requests: recorded once, without what is private, and replayed against every candidate.

A file of them is a TFRecord of PredictionLogs without answers, which is what a warmup file is too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from tasks.answers import comparison, limits, numerics
from tasks.answers.comparison import Comparison
from tasks.answers.held_to import HeldTo
from tasks.answers.limits import Limits
from tasks.answers.served import ServerConditions
from tasks.core.artifacts import Candidate, Check
from tasks.core.errors import DataError, SmokeTestFailed
from tasks.servers.serving_client import Answer, ServingClient

Log = Any
"""A prediction_log_pb2.PredictionLog."""
_KINDS = ("predict_log", "classify_log", "regress_log")


def read(file: Path) -> list[Log]:
    """Return the PredictionLogs in a file. Raises DataError."""
    try:
        records = [record.numpy() for record in tf.data.TFRecordDataset([str(file)])]
        return [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    except (tf.errors.OpError, ValueError) as error:
        raise DataError(f"{file} is not a TFRecord of PredictionLogs: {error}") from None


def request(log: Log) -> Any:
    """Return the request of a log; None of one that is not Predict, Classify or Regress."""
    kind = log.WhichOneof("log_type")
    return getattr(log, kind).request if kind in _KINDS else None


def of_examples(candidate: Candidate, records: Sequence[bytes], requests: int) -> Iterator[Log]:
    """Yield requests about one example each, by every API of every parsing signature in turn."""
    parsing = [each for each in candidate.signatures if each.receiver == "parsing"]
    apis = [
        (each, kind) for each in parsing for kind in _KINDS if kind in ("predict_log", f"{each.method}_log")
    ]
    if not apis or not records:
        raise DataError("no signature takes serialized tf.Examples", "record from a request log: --from FILE")
    for index in range(requests):
        (signature, kind), record = apis[index % len(apis)], records[index % len(records)]
        log = prediction_log_pb2.PredictionLog()
        asked = getattr(log, kind).request
        asked.model_spec.signature_name = signature.name
        if kind == "predict_log":
            (alias,) = signature.inputs
            asked.inputs[alias].CopyFrom(tf.make_tensor_proto([record]))
        else:
            asked.input.example_list.examples.add().ParseFromString(record)
        yield log


def replayed(
    logs: Sequence[Log], client: ServingClient, candidate: Candidate, server: ServerConditions
) -> Check:
    """Send each request to the server and to the candidate in a session here; compare the answers."""
    found = Comparison()
    widest = HeldTo({}, False, "")
    with asking(logs, client, candidate.path, candidate.offline, server) as ask:
        for index in range(len(logs)):
            reply = ask(index)
            found += reply.found
            widest = reply.held_to or widest
    check = widest.check("golden requests", "the export in process", found)
    return replace(check, rule=f"{len(logs)} are answered, finite, {check.rule}")


@dataclass(frozen=True)
class Reply:
    """How the server answered one golden request."""

    found: Comparison
    version: int | None = None
    """Version that answered, None if none did."""
    held_to: HeldTo | None = None


@contextlib.contextmanager
def asking(
    logs: Sequence[Log], client: ServingClient, model: Path, offline: Path, server: ServerConditions
) -> Iterator[Callable[[int], Reply]]:
    """Yield a function that sends the request of an index to the server and to the SavedModel `model` here.

    `offline` holds the limits of the model's answers.
    """
    known: Limits = replace(limits.read(offline), conditions=numerics.conditions())
    graph = tf.Graph()
    with contextlib.closing(tf.compat.v1.Session(graph=graph)) as session:
        with graph.as_default():  # no longer than this: who asks meanwhile may compute eagerly
            loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(model))

        def ask(index: int) -> Reply:
            try:
                served = _served(request(logs[index]), client)
                expected = _in_process(session, loaded.signature_def, request(logs[index]))
            except (SmokeTestFailed, tf.errors.OpError, KeyError, ValueError) as error:
                return Reply(comparison.failed(f"request {index}: {getattr(error, 'message', error)}"))
            signature = request(logs[index]).model_spec.signature_name or "serving_default"
            held_to = HeldTo.of(known, signature, server.conditions, alone=server.alone)
            place = f"request {index}, "
            found = held_to.compare_served(expected, served.outputs, alike=True, place=place)
            return Reply(found, served.version, held_to)

        yield ask


def _served(asked: Any, client: ServingClient) -> Answer:
    signature = asked.model_spec.signature_name
    if isinstance(asked, predict_pb2.PredictRequest):
        inputs = {name: tf.make_ndarray(proto) for name, proto in asked.inputs.items()}
        return client.predict(signature, inputs)
    ask = client.classify if "Classification" in type(asked).__name__ else client.regress
    return ask(signature, _serialized(asked.input))


def _in_process(session: Any, definitions: Mapping[str, Any], asked: Any) -> dict[str, Any]:
    definition = definitions[asked.model_spec.signature_name or "serving_default"]
    if isinstance(asked, predict_pb2.PredictRequest):
        inputs = {name: tf.make_ndarray(proto) for name, proto in asked.inputs.items()}
    else:
        (alias,) = definition.inputs
        inputs = {alias: np.array(_serialized(asked.input), dtype=object)}
    feed = {definition.inputs[alias].name: array for alias, array in inputs.items()}
    fetches = {alias: info.name for alias, info in definition.outputs.items()}
    return dict(session.run(fetches, feed))


def _serialized(given: Any) -> list[bytes]:
    """Return the tf.Examples as they are fed to the graph: a context is part of each."""
    if given.WhichOneof("kind") != "example_list_with_context":
        return [each.SerializeToString() for each in given.example_list.examples]
    context = given.example_list_with_context.context.SerializeToString()
    return [context + each.SerializeToString() for each in given.example_list_with_context.examples]
