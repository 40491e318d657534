"""What a servable's signature takes to be asked quickly: prepared once, used by each request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import model_pb2

from model_server.base.status import StatusError
from model_server.models.servable import Servable
from model_server.requests import examples, predict, quick_answers
from model_server.requests.quick_answers import Writer
from model_server.tensorflow_c import op_libraries
from model_server.tensorflow_c.tensors import Array
from model_server.tensorflow_c.tf_session import Endpoints
from model_server.tensorflow_c.tf_tensors import Strings

_RUNS_TO_KNOW = 3
_QUICK_SECONDS = 0.004
_SLOW_SECONDS = 0.25
_FORGETTING = 1.1  # a run


@dataclass
class Pace:
    """What runs of one size took: rows and bytes are within a factor of two."""

    runs: int = 0
    seconds: float = 0.0

    def took(self, seconds: float) -> None:
        """Learn what a run took: the least of late is what it needs, the rest is the machine's noise."""
        self.runs += 1
        slow = seconds > _SLOW_SECONDS and self.runs > _RUNS_TO_KNOW
        known = self.seconds * _FORGETTING
        self.seconds = seconds if slow or not known else min(seconds, known)


@dataclass(eq=False)
class Plan:
    """A signature under one method; requests may share a run if its rows are independent."""

    method: str
    model: str
    servable: Servable
    signature: str
    feeds: Endpoints
    fetches: Endpoints
    aliases: tuple[str, ...]
    parsed_only: tuple[bool, ...]
    write: Writer
    model_spec: bytes
    shapes: tuple[tuple[int, ...], ...]
    """Of the inputs, -1 for an unknown size."""
    is_shared: bool
    """Whether requests share runs."""
    waiting: list[Any] = field(default_factory=list)
    running: int = 0
    paces: dict[tuple[int, int], Pace] = field(default_factory=dict)

    def is_quick(self, *sizes: tuple[int, int]) -> bool:
        """Return whether runs of these rows and bytes are so short that the thread which reads can do them.

        What smaller runs took says nothing: time may grow with any power of the rows. Nor is a graph with
        loops ever quick, as the values may decide how often they turn.
        """
        if self.signature in self.servable.with_loops:
            return False
        seconds = 0.0
        for rows, size_bytes in sizes:
            pace = self.paces.get((rows.bit_length(), size_bytes.bit_length()))
            if pace is None or pace.runs < _RUNS_TO_KNOW:
                return False
            seconds += pace.seconds
        return seconds < _QUICK_SECONDS

    def took(self, seconds: float, rows: int, size_bytes: int) -> None:
        """Learn what a run of this size took."""
        size = (rows.bit_length(), size_bytes.bit_length())
        self.paces.setdefault(size, Pace()).took(seconds)

    def can_share(self, values: Sequence[Array | Strings]) -> bool:
        """Return whether the values may be rows of a run with others.

        They have the declared shapes: a graph that keeps the rows of a matrix apart needn't do so with the
        elements of a vector, and nothing keeps a client from sending one.
        """
        return self.is_shared and all(map(_fits, values, self.shapes))

    def values(self, inputs: Mapping[str, Array | Strings]) -> list[Array | Strings] | None:
        """Return what to feed, in order; None if it has to be checked in the ordinary way."""
        if len(inputs) != len(self.aliases):
            return None
        values = []
        for alias, parsed_only in zip(self.aliases, self.parsed_only, strict=True):
            value = inputs.get(alias)
            if value is None:
                return None
            values.append(value if parsed_only or not isinstance(value, Strings) else _array(value))
        if op_libraries.are_loaded() and not all(map(_fits, values, self.shapes)):
            return None  # the ordinary way refuses it
        return values


def prepare(
    method: str,
    servable: Servable,
    spec: model_pb2.ModelSpec,
    output_filter: Sequence[str],
    check_method_name: bool,
    sharing: str,
) -> Plan | None:
    """Return the plan of a signature; None if it has to be run in the ordinary way.

    `sharing` is the setting `batching`.
    """
    key = spec.signature_name or predict.DEFAULT_SIGNATURE
    signature = servable.signatures.get(key)
    if servable.batched or signature is None or not _is_batch_major(signature):
        return None
    try:
        found = _PREPARATIONS[method](signature, output_filter, check_method_name)
        if found is None:
            return None
        inputs, outputs, write = found
        session = servable.session
        answered = model_pb2.ModelSpec()
        predict.fill_model_spec(answered, spec, key, servable)
        return Plan(
            method,
            spec.name,
            servable,
            key,
            session.endpoints([name for _, name in inputs]),
            session.endpoints(outputs),
            tuple(alias for alias, _ in inputs),
            tuple(session.is_only_parsed(name) for _, name in inputs),
            write,
            answered.SerializeToString(),
            tuple(tuple(dim.size for dim in signature.inputs[alias].tensor_shape.dim) for alias, _ in inputs),
            sharing == "on" or (sharing == "auto" and servable.dependences.get(key) == ""),
        )
    except StatusError:
        return None


Parts = tuple[list[tuple[str, str]], list[str], Writer]


def _classify(
    signature: meta_graph_pb2.SignatureDef, _: Sequence[str], check_method_name: bool
) -> Parts | None:
    question = examples.classify_question(signature, check_method_name)
    write = quick_answers.labels_of(question.outputs)
    return ([("inputs", question.feed)], list(question.outputs.values()), write) if write else None


def _regress(
    signature: meta_graph_pb2.SignatureDef, _: Sequence[str], check_method_name: bool
) -> Parts | None:
    question = examples.regress_question(signature, check_method_name)
    outputs = list(question.outputs.values())
    return [("inputs", question.feed)], outputs, quick_answers.write_regressions


def _predict(
    signature: meta_graph_pb2.SignatureDef, output_filter: Sequence[str], check_method_name: bool
) -> Parts | None:
    if check_method_name:
        predict.check_method_name_of(signature)
    aliases = predict.output_aliases(signature, output_filter)
    inputs = [(alias, info.name) for alias, info in signature.inputs.items()]
    outputs = [signature.outputs[alias].name for alias in aliases]
    return inputs, outputs, quick_answers.predictions(aliases)


_PREPARATIONS: dict[str, Callable[..., Parts | None]] = {
    "Predict": _predict,
    "Classify": _classify,
    "Regress": _regress,
}


def _is_batch_major(signature: meta_graph_pb2.SignatureDef) -> bool:
    """Whether all inputs and outputs have a first dimension of unknown size: one row for each question."""
    shapes = [info.tensor_shape for side in (signature.inputs, signature.outputs) for info in side.values()]
    return bool(signature.inputs) and all(
        not shape.unknown_rank and shape.dim and shape.dim[0].size < 0 for shape in shapes
    )


def _fits(value: Array | Strings, shape: Sequence[int]) -> bool:
    given = (-1,) if isinstance(value, Strings) else value.shape
    return len(given) == len(shape) and all(
        size in (-1, found) for size, found in zip(shape[1:], given[1:], strict=True)
    )


def _array(strings: Strings) -> Array:
    array = np.empty(len(strings.values), np.object_)
    array[:] = strings.values
    return array
