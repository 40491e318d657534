"""Requests read no deeper than answering needs: tf.Examples stay bytes, numbers stay packed.

The fields are those of tensorflow_serving/apis/*.proto and tensorflow/core/framework/tensor.proto by their
numbers, declared as bytes where the real messages have messages or numbers; protobuf's own parser reads
them, so that order, repetition and unknown fields mean what they always do. Whatever cannot be read for
certain in this way is None here: the real message decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-not-found]
from tensorflow.core.framework import tensor_shape_pb2, types_pb2

from model_server.base import text_protos
from model_server.base.text_protos import Field
from model_server.tensorflow_c.tensors import NUMPY_TYPES, Array, is_possible
from model_server.tensorflow_c.tf_tensors import Strings

_KNOWN_SHAPES = 4096
_FLOAT_BYTES = 4

_PACKAGE = "model_server.quick"
_MESSAGES = text_protos.declare(
    "model_server/quick_requests.proto",
    _PACKAGE,
    {
        "Examples": [Field(1, "examples", "bytes", repeated=True)],
        "Input": [
            Field(1, "example_list", f"{_PACKAGE}.Examples"),
            Field(2, "example_list_with_context", "bytes", repeated=True),
        ],
        "ExamplesRequest": [
            Field(1, "model_spec", "bytes", repeated=True),
            Field(2, "input", f"{_PACKAGE}.Input"),
        ],
        "Tensor": [
            Field(1, "dtype", "int32"),
            Field(2, "tensor_shape", "bytes", repeated=True),
            Field(3, "version_number", "int32"),
            Field(4, "tensor_content", "bytes"),
            Field(5, "float_val", "bytes", repeated=True),
            Field(8, "string_val", "bytes", repeated=True),
        ],
        "Entry": [Field(1, "key", "string"), Field(2, "value", f"{_PACKAGE}.Tensor")],
        "PredictRequest": [
            Field(1, "model_spec", "bytes", repeated=True),
            Field(2, "inputs", f"{_PACKAGE}.Entry", repeated=True),
            Field(3, "output_filter", "string", repeated=True),
        ],
    },
)


@dataclass(frozen=True)
class ExamplesRequest:
    """Classify or Regress: the bytes of the ModelSpec, and each Example's."""

    spec: bytes
    examples: Sequence[bytes]


@dataclass(frozen=True)
class PredictRequest:
    """Predict: the bytes of the ModelSpec, the inputs by alias, and the outputs that are asked for."""

    spec: bytes
    inputs: dict[str, Array | Strings]
    output_filter: tuple[str, ...]


def read_examples(serialized: bytes) -> ExamplesRequest | None:
    """Read a ClassificationRequest or RegressionRequest with at least one Example and no context."""
    try:
        request = _MESSAGES["ExamplesRequest"].FromString(serialized)
    except DecodeError:
        return None
    specs, asked = request.model_spec, request.input
    if len(specs) != 1 or len(asked.example_list_with_context):
        return None
    examples = asked.example_list.examples
    return ExamplesRequest(specs[0], list(examples)) if examples else None


def read_predict(serialized: bytes) -> PredictRequest | None:
    """Read a PredictRequest whose tensors hold strings, packed floats or tensor_content, all elements."""
    try:
        request = _MESSAGES["PredictRequest"].FromString(serialized)
    except DecodeError:
        return None
    specs, entries = request.model_spec, request.inputs
    inputs = {entry.key: _value(entry.value) for entry in entries}
    known = {alias: value for alias, value in inputs.items() if value is not None}
    if len(specs) != 1 or len(known) != len(entries):
        return None
    return PredictRequest(specs[0], known, tuple(request.output_filter))


def _value(tensor: Any) -> Array | Strings | None:
    shapes, datatype = tensor.tensor_shape, tensor.dtype
    shape = _shape(shapes[0]) if len(shapes) == 1 else None
    if shape is None or not shape:
        return None
    count, content = math.prod(shape), tensor.tensor_content
    if datatype == types_pb2.DT_STRING:
        strings = tensor.string_val
        return Strings(list(strings)) if len(strings) == count and len(shape) == 1 and not content else None
    if content:
        dtype = NUMPY_TYPES.get(datatype)
        if dtype is None or len(content) != count * np.dtype(dtype).itemsize:
            return None
        return np.frombuffer(content, dtype).reshape(shape)
    if datatype != types_pb2.DT_FLOAT or len(UnknownFieldSet(tensor)):  # floats that are not packed
        return None
    chunks = tensor.float_val
    packed = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    return np.frombuffer(packed, np.float32).reshape(shape) if len(packed) == _FLOAT_BYTES * count else None


_shapes: dict[bytes, tuple[int, ...] | None] = {}


def _shape(serialized: bytes) -> tuple[int, ...] | None:
    """Return the sizes of a TensorShapeProto's dimensions; None for a shape that no array can have."""
    try:
        return _shapes[serialized]
    except KeyError:
        pass
    try:
        proto = tensor_shape_pb2.TensorShapeProto.FromString(serialized)
    except DecodeError:
        return None
    shape = tuple(dim.size for dim in proto.dim)
    known = shape if is_possible(shape) else None
    if len(_shapes) >= _KNOWN_SHAPES:
        _shapes.clear()
    _shapes[serialized] = known
    return known
