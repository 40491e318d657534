"""Answers written as bytes for a whole batch at once, and cut into one for each request.

What is written means the same as the message that examples.py and predict.py build: a score of 0, which
protobuf leaves out, is spelled out here. Where an output is none that a writer can take, it raises
CannotWrite, and the message is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tensorflow.core.framework import tensor_pb2, types_pb2

from model_server.tensorflow_c import tensors, wire
from model_server.tensorflow_c.tf_tensors import Raw, small_strings

_MATRIX = 2  # dimensions
_FIXED32 = 5
_FLOAT_BYTES = 4
_ONE_BYTE = 0x7F
_REMEMBERED = 256
_TEXT_BYTES = 2**16
_SCORE = wire.tag(2, _FIXED32) + bytes(_FLOAT_BYTES)
# TensorProto's fields for what is packed as it is in memory.
_PACKED = {types_pb2.DT_FLOAT: 5, types_pb2.DT_DOUBLE: 6, types_pb2.DT_BOOL: 11}
_INTEGERS = {types_pb2.DT_INT32: 7, types_pb2.DT_INT64: 10}
_STRINGS = 8

Writer = Callable[[Sequence[Raw], Sequence[int]], list[bytes]]
"""From the outputs of a batch and the rows of each of its requests: what answers each, without model_spec."""


class CannotWrite(Exception):
    """These outputs are for the builder of messages, which also finds the words for what is wrong."""


def write_regressions(outputs: Sequence[Raw], rows: Sequence[int]) -> list[bytes]:
    """Return `result` of RegressionResponses, from one output of shape [rows] or [rows, 1]."""
    (output,) = outputs
    _require(output, types_pb2.DT_FLOAT, sum(rows))
    if output.shape[1:] not in ((), (1,)):
        raise CannotWrite
    lines = np.empty((sum(rows), 3 + _FLOAT_BYTES), np.uint8)
    lines[:, :3] = (1 << 3 | 2, 1 + _FLOAT_BYTES, 1 << 3 | _FIXED32)
    lines[:, 3:] = np.frombuffer(output.content, np.uint8).reshape(-1, _FLOAT_BYTES)
    return [wire.delimited(1, part) for part in _cut(lines.tobytes(), lines.shape[1], rows)]


def write_scores(outputs: Sequence[Raw], rows: Sequence[int]) -> list[bytes]:
    """Return `result` of ClassificationResponses without labels, from scores [rows, classes]."""
    (scores,) = outputs
    _require(scores, types_pb2.DT_FLOAT, sum(rows), _MATRIX)
    return _classifications([b""] * scores.shape[1], scores, rows)


def write_classes(outputs: Sequence[Raw], rows: Sequence[int]) -> list[bytes]:
    """Return `result` of ClassificationResponses, where all rows have the same labels in the same order."""
    classes, scores = outputs
    _require(classes, types_pb2.DT_STRING, sum(rows), _MATRIX)
    _require(scores, types_pb2.DT_FLOAT, sum(rows), _MATRIX)
    first = classes.content[: classes.shape[1] * classes.size]
    if classes.shape != scores.shape or classes.content != first * sum(rows):
        raise CannotWrite
    return _classifications(small_strings(first), scores, rows)


def predictions(aliases: Sequence[str]) -> Writer:
    """Return the writer of PredictResponses' `outputs`, given in the order of `aliases`."""
    keys = [wire.delimited(1, alias.encode()) for alias in aliases]

    def write(outputs: Sequence[Raw], rows: Sequence[int]) -> list[bytes]:
        parts = [b""] * len(rows)
        for key, output in zip(keys, outputs, strict=True):
            row_bytes = _row_bytes(output, sum(rows))
            for index, content in enumerate(_cut(output.content, row_bytes, rows)):
                proto = _tensor(output, (rows[index], *output.shape[1:]), content)
                parts[index] += wire.delimited(1, key + wire.delimited(2, proto))
        return parts

    return write


def _require(output: Raw, datatype: int, rows: int, dimensions: int = 0) -> None:
    if output.datatype != datatype or not output.shape or output.shape[0] != rows:
        raise CannotWrite
    if dimensions and len(output.shape) != dimensions:
        raise CannotWrite


def _row_bytes(output: Raw, rows: int) -> int:
    if not rows or not output.shape or output.shape[0] != rows:
        raise CannotWrite
    return len(output.content) // rows


def _cut(content: bytes, row_bytes: int, rows: Sequence[int]) -> list[bytes]:
    if len(rows) == 1:
        return [content]
    parts, start = [], 0
    for count in rows:
        end = start + count * row_bytes
        parts.append(content[start:end])
        start = end
    return parts


def _classifications(labels: list[bytes], scores: Raw, rows: Sequence[int]) -> list[bytes]:
    template, places = _row_template(tuple(labels))
    lines = np.empty((sum(rows), len(template)), np.uint8)
    lines[:] = template
    lines[:, places] = np.frombuffer(scores.content, np.uint8).reshape(sum(rows), len(places))
    return [wire.delimited(1, part) for part in _cut(lines.tobytes(), lines.shape[1], rows)]


_templates: dict[tuple[bytes, ...], tuple[tensors.Array, tensors.Array]] = {}


def _row_template(labels: tuple[bytes, ...]) -> tuple[tensors.Array, tensors.Array]:
    """Return the bytes of one Classifications with these labels, and where in it the scores' bytes are."""
    known = _templates.get(labels)
    if known is not None:
        return known
    classes = [(wire.delimited(1, _utf8(label)) if label else b"") + _SCORE for label in labels]
    written = [wire.delimited(1, each) for each in classes]
    body = b"".join(written)
    line = wire.delimited(1, body)
    ends = len(line) - len(body) + np.cumsum([len(each) for each in written], dtype=np.intp)
    places = (ends[:, np.newaxis] + np.arange(-_FLOAT_BYTES, 0)).reshape(-1)
    if len(_templates) >= _REMEMBERED:
        _templates.clear()
    _templates[labels] = np.frombuffer(line, np.uint8), places
    return _templates[labels]


def _utf8(label: bytes) -> bytes:
    """Bytes that are no UTF-8 are shown, as examples.py shows them."""
    return label.decode("utf-8", "backslashreplace").encode()


def _tensor(output: Raw, shape: tuple[int, ...], content: bytes) -> bytes:
    return _tensor_head(output.datatype, shape) + _values(output.datatype, content)


_heads: dict[tuple[int, tuple[int, ...]], bytes] = {}


def _tensor_head(datatype: int, shape: tuple[int, ...]) -> bytes:
    known = _heads.get((datatype, shape))
    if known is not None:
        return known
    proto = tensor_pb2.TensorProto(dtype=datatype)
    proto.tensor_shape.SetInParent()
    for size in shape:
        proto.tensor_shape.dim.add().size = size
    if len(_heads) >= _REMEMBERED:
        _heads.clear()
    _heads[datatype, shape] = proto.SerializeToString()
    return _heads[datatype, shape]


def _values(datatype: int, content: bytes) -> bytes:
    if not content:
        return b""
    if datatype in _PACKED:
        return wire.delimited(_PACKED[datatype], content)
    if datatype == types_pb2.DT_STRING:
        return _strings(content)
    values = np.frombuffer(content, tensors.NUMPY_TYPES[datatype])
    if datatype in _INTEGERS and values.min() >= 0 and values.max() <= _ONE_BYTE:
        return wire.delimited(_INTEGERS[datatype], values.astype(np.uint8).tobytes())
    written: bytes = tensors.to_values(values, datatype).SerializeToString()
    return written


_texts: dict[bytes, bytes] = {}


def _strings(content: bytes) -> bytes:
    """Labels come again and again: what was written once is remembered."""
    known = _texts.get(content)
    if known is not None:
        return known
    written = wire.repeated(_STRINGS, small_strings(content))
    if len(_texts) >= _REMEMBERED:
        _texts.clear()
    if len(content) <= _TEXT_BYTES:
        _texts[content] = written
    return written


def with_spec(parts: Sequence[bytes], model_spec: bytes) -> list[bytes]:
    """Append `model_spec` to each: the responses of Predict, Classify and Regress all have it as field 2."""
    spec = wire.delimited(2, model_spec)
    return [part + spec for part in parts]


def labels_of(outputs: Mapping[str, str]) -> Writer | None:
    """Return the writer for a classification's outputs; None where there are labels only."""
    return {("classes", "scores"): write_classes, ("scores",): write_scores}.get(tuple(outputs))
