"""JSON values to tensor elements: types, ranges, shapes (tensorflow_serving/util/json_tensor.cc)."""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import Any

import numpy as np
from tensorflow.core.framework import types_pb2

from model_server.base.status import Code, StatusError, invalid_argument
from model_server.tensorflow_c.tensors import NUMPY_TYPES, Array, type_name

_LONGEST_QUOTE = 1024
_MOST_LEVELS = 31  # NumPy has 32 dimensions, and the rows of "instances" are one of them
INT_RANGES: dict[int, range] = {
    # 8 and 16 bit integers are read as int32 and cast, which wraps around
    types_pb2.DT_INT32: range(-(2**31), 2**31),
    types_pb2.DT_INT16: range(-(2**31), 2**31),
    types_pb2.DT_INT8: range(-(2**31), 2**31),
    types_pb2.DT_UINT8: range(-(2**31), 2**31),
    types_pb2.DT_INT64: range(-(2**63), 2**63),
    types_pb2.DT_UINT32: range(2**32),
    types_pb2.DT_UINT64: range(2**64),
}
# The largest whole numbers below which a float or double skips none.
_EXACT_INTEGERS: dict[int, int] = {types_pb2.DT_FLOAT: 2**24 - 1, types_pb2.DT_DOUBLE: 2**53 - 1}
_ENCODER = json.JSONEncoder(indent=4, ensure_ascii=False)
_TYPE_NAMES: dict[type, str] = {
    type(None): "Null", dict: "Object", list: "Array", str: "String", int: "Number", float: "Number",
}  # fmt: skip


def flatten(value: Any, datatype: int) -> tuple[tuple[int, ...], list[Any]]:
    """Return shape and checked elements, row-major, of a value or of lists of lists."""
    shape: list[int] = []
    inner = value
    while isinstance(inner, list):
        if len(shape) >= _MOST_LEVELS:
            raise invalid_argument(f"JSON lists are nested deeper than {_MOST_LEVELS} levels")
        shape.append(len(inner))
        if not inner:
            break
        inner = inner[0]
    found: list[Any] = []
    _collect(value, 0, shape, found)
    return tuple(shape), _checked(found, datatype)


def to_array(elements: list[Any], shape: tuple[int, ...], datatype: int) -> Array:
    """Return the checked elements as an array of `datatype`."""
    if datatype in INT_RANGES:
        wide = np.uint64 if datatype == types_pb2.DT_UINT64 else np.int64
        return np.array(elements, wide).astype(NUMPY_TYPES[datatype]).reshape(shape)
    array = np.empty(len(elements), NUMPY_TYPES[datatype])
    array[:] = elements
    return array.reshape(shape)


def _collect(value: Any, level: int, shape: list[int], found: list[Any]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid_argument(
                f"JSON Value: {quote(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        found.append(value)
        return
    if level >= len(shape):
        raise invalid_argument(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid_argument(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    if level == len(shape) - 1 and list not in set(map(type, value)):
        found.extend(value)
        return
    for element in value:
        _collect(element, level + 1, shape, found)


def _checked(found: list[Any], datatype: int) -> list[Any]:
    """Return the elements as NumPy takes them. Raises StatusError at one that `datatype` cannot hold."""
    if datatype in _EXACT_INTEGERS:
        for value in found:
            check_decimal(value, datatype)
    elif datatype in INT_RANGES:
        allowed = INT_RANGES[datatype]
        for value in found:
            if type(value) is not int or value not in allowed:
                raise _wrong_type(value, datatype)
    elif datatype == types_pb2.DT_BOOL:
        for value in found:
            if type(value) is not bool:
                raise _wrong_type(value, datatype)
    elif datatype == types_pb2.DT_STRING:
        return [_string(value, datatype) for value in found]
    elif found:
        raise StatusError(
            Code.UNIMPLEMENTED,
            f"Conversion of JSON Value: {quote(found[0])} to type: {type_name(datatype)}",
        )
    return found


def check_decimal(value: Any, datatype: int) -> None:
    """Raise StatusError where a float or double cannot hold the value."""
    if type(value) is int:
        lossless = abs(value) <= _EXACT_INTEGERS[datatype]
    elif type(value) is float:
        largest = float(np.finfo(np.float32 if datatype == types_pb2.DT_FLOAT else np.float64).max)
        lossless = not math.isfinite(value) or abs(value) <= largest
    else:
        raise _wrong_type(value, datatype)
    if not lossless:
        raise invalid_argument(
            f"Cannot convert JSON value: {quote(value)} to {type_name(datatype)} without loss of precision."
        )


def _string(value: Any, datatype: int) -> bytes:
    if isinstance(value, str):
        return utf8(value)
    if isinstance(value, dict):
        return decoded(value)
    raise _wrong_type(value, datatype)


def is_base64(value: dict[str, Any]) -> bool:
    """Tell whether an object is a string in base64: {"b64": "…"} and no other key."""
    return list(value) == ["b64"] and isinstance(value["b64"], str)


def is_object(value: Any) -> bool:
    """Tell whether a value is an object of named inputs."""
    return isinstance(value, dict) and not is_base64(value)


def decoded(value: dict[str, Any]) -> bytes:
    """Return the bytes of a base64 object."""
    if not is_base64(value):
        raise invalid_argument(f"JSON Value: {quote(value)} not formatted correctly for base64 data")
    text = "".join(value["b64"].split()).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid_argument("Unable to base64 decode") from None


def utf8(text: str) -> bytes:
    """Return the bytes of a JSON string."""
    return text.encode("utf-8", "surrogatepass")


def _wrong_type(value: Any, datatype: int) -> StatusError:
    return invalid_argument(
        f"JSON Value: {quote(value)} Type: {json_type(value)} is not of expected type: {type_name(datatype)}"
    )


def json_type(value: Any) -> str:
    """Return the value's JSON type, as rapidjson calls it."""
    return str(value) if isinstance(value, bool) else _TYPE_NAMES[type(value)]


def quote(value: Any) -> str:
    """Return the value as indented JSON; unlike the official server's, cut where it is very long."""
    text = ""
    try:
        for piece in _ENCODER.iterencode(value):
            text += piece
            if len(text) > _LONGEST_QUOTE:
                return text[:_LONGEST_QUOTE] + "..."
    except RecursionError:
        return text[:_LONGEST_QUOTE] + "..."
    return text
