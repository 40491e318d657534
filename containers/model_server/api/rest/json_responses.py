"""Arrays and results to JSON response bodies (tensorflow_serving/util/json_tensor.cc)."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import classification_pb2, regression_pb2

from model_server.base.status import invalid_argument
from model_server.tensorflow_c.tensors import Array, type_name

_INTEGERS = frozenset(
    {
        types_pb2.DT_INT8,
        types_pb2.DT_INT16,
        types_pb2.DT_INT32,
        types_pb2.DT_INT64,
        types_pb2.DT_UINT8,
        types_pb2.DT_UINT32,
        types_pb2.DT_UINT64,
    }
)


def decimal(value: float, single: bool) -> str:
    """Return the shortest of %g that reads back as `value`, else all its digits; whole numbers end in ".0".

    `single` is whether `value` is a float32.
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    text = f"{value:g}"
    if (np.float32(text) if single else float(text)) != value:
        text = f"{value:.9g}" if single else f"{value:.17g}"
    return text if "." in text or "e" in text else text + ".0"


def predictions(outputs: Mapping[str, tuple[Array, int]]) -> bytes:
    """Return the answer to a row-form request: an array and its DataType for each output alias."""
    size: int | None = None
    for alias, (array, _) in sorted(outputs.items()):
        if array.ndim == 0:
            raise invalid_argument(f"Tensor name: {alias} has no shape information ")
        if size is not None and len(array) != size:
            raise invalid_argument(
                f"Tensor name: {alias} has inconsistent batch size: {len(array)} expecting: {size}"
            )
        size = len(array)
    columns = {alias: _texts(alias, array, datatype) for alias, (array, datatype) in sorted(outputs.items())}
    if len(columns) == 1:
        rows = next(iter(columns.values()))
        return _encoded(f'{{\n    "predictions": [{", ".join(rows)}\n    ]\n}}')
    objects = [
        _object(dict(zip(columns, row, strict=True)), 8) for row in zip(*columns.values(), strict=True)
    ]
    return _encoded(f'{{\n    "predictions": [\n        {f",{chr(10)}        ".join(objects)}\n    ]\n}}')


def outputs(values: Mapping[str, tuple[Array, int]]) -> bytes:
    """Return the answer to a column-form request: an array and its DataType for each output alias."""
    texts = {alias: _text(alias, array, datatype) for alias, (array, datatype) in sorted(values.items())}
    body = next(iter(texts.values())) if len(texts) == 1 else _object(texts, 4)
    return _encoded(f'{{\n    "outputs": {body}\n}}')


def classifications(result: classification_pb2.ClassificationResult) -> bytes:
    """[label, score] pairs, a list of them for each Example."""
    rows = [
        "["
        + ", ".join(f"[{_quoted(each.label)}, {decimal(each.score, single=True)}]" for each in row.classes)
        + "]"
        for row in result.classifications
    ]
    return _results(rows)


def regressions(result: regression_pb2.RegressionResult) -> bytes:
    """One value for each Example."""
    return _results([decimal(each.value, single=True) for each in result.regressions])


def error(message: str) -> bytes:
    """Return the body of every answer that is not OK."""
    try:
        message.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        message = message.encode("utf-8", "backslashreplace").decode()
    return _encoded(f'{{\n    "error": {_quoted(message)}\n}}')


def _results(rows: list[str]) -> bytes:
    return _encoded(f'{{\n    "results": [{", ".join(rows)}\n    ]\n}}')


def _object(members: Mapping[str, str], indent: int) -> str:
    margin = " " * indent
    lines = [f"{margin}    {_quoted(key)}: {text}" for key, text in members.items()]
    return "{\n" + ",\n".join(lines) + f"\n{margin}}}"


def _texts(alias: str, array: Array, datatype: int) -> list[str]:
    write = _writer(alias, datatype)
    return [_nested(row, write) for row in array.tolist()]


def _text(alias: str, array: Array, datatype: int) -> str:
    return _nested(array.tolist(), _writer(alias, datatype))


def _nested(value: Any, write: Callable[[Any], str]) -> str:
    if isinstance(value, list):
        return "[" + ", ".join([_nested(each, write) for each in value]) + "]"
    return write(value)


def _writer(alias: str, datatype: int) -> Callable[[Any], str]:
    if datatype in (types_pb2.DT_FLOAT, types_pb2.DT_DOUBLE):
        single = datatype == types_pb2.DT_FLOAT
        return lambda value: decimal(value, single)
    if datatype in _INTEGERS:
        return str
    if datatype == types_pb2.DT_BOOL:
        return lambda value: "true" if value else "false"
    if datatype == types_pb2.DT_STRING:
        return _base64 if alias.endswith("_bytes") else _string
    raise invalid_argument(f"Failed to write JSON value for tensor type: {type_name(datatype)}")


def _base64(value: bytes) -> str:
    return f'{{"b64": "{base64.b64encode(value).decode()}"}}'


def _string(value: bytes) -> str:
    return _quoted(value.decode("utf-8", "surrogateescape"))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _encoded(text: str) -> bytes:
    # Strings that are no UTF-8 leave as they came.
    return text.encode("utf-8", "surrogateescape")
