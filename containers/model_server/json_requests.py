"""JSON request bodies to arrays and Examples (tensorflow_serving/util/json_tensor.cc)."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensorflow.core.example import example_pb2
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import input_pb2

from model_server.status import Code, StatusError, invalid_argument
from model_server.tensors import NUMPY_TYPES, Array, type_name

_LONGEST_QUOTE = 1024
_INT_RANGES: dict[int, range] = {
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
_TYPE_NAMES: dict[type, str] = {
    type(None): "Null", dict: "Object", list: "Array", str: "String", int: "Number", float: "Number",
}  # fmt: skip
# What Python's parser says, in the words of the official server's (rapidjson).
_PARSE_ERRORS = {
    "Expecting value": "Invalid value.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Expecting ',' delimiter": "Missing a comma or } after an object member.",
    "Extra data": "The document root must not be followed by other values.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
}

Inputs = Mapping[str, meta_graph_pb2.TensorInfo]


@dataclass(frozen=True)
class PredictBody:
    """The arrays of a :predict body by input alias; `by_row` is whether they came as "instances"."""

    arrays: dict[str, Array]
    by_row: bool


def parse(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`; NaN, Infinity and -Infinity are numbers."""
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    try:
        document = json.loads(body)
    except json.JSONDecodeError as error:
        text = _PARSE_ERRORS.get(error.msg, error.msg)
        raise invalid_argument(f"JSON Parse error: {text} at offset: {error.pos}") from None
    except (ValueError, RecursionError) as error:  # bytes that are no UTF-8, endless digits or brackets
        raise invalid_argument(f"JSON Parse error: {error} at offset: 0") from None
    if not isinstance(document, dict):
        raise invalid_argument(f"JSON Value: {_quote(document)} Is not object")
    return document


def signature_name(document: dict[str, Any]) -> str:
    """Return the signature asked for, empty for the default one."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid_argument(
            f"JSON Value: {_quote(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return name


def predict_body(document: dict[str, Any], inputs: Inputs, signature: str) -> PredictBody:
    """Return the inputs of a :predict body, in row ("instances") or column ("inputs") form."""
    if not inputs:
        raise invalid_argument(f"Failed to get input map for signature: {signature or 'DEFAULT'}")
    if "instances" in document and "inputs" in document:
        raise _malformed(
            document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
        )
    if "instances" in document:
        instances = document["instances"]
        if not isinstance(instances, list):
            raise _malformed(document, "Excepting 'instances' to be an list/array")
        if not instances:
            raise _malformed(document, "No values in 'instances' array")
        return PredictBody(_rows(instances, inputs), by_row=True)
    if "inputs" in document:
        return PredictBody(_columns(document["inputs"], inputs), by_row=False)
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def examples_input(document: dict[str, Any]) -> input_pb2.Input:
    """Return the Examples of a :classify or :regress body, with their context."""
    asked = input_pb2.Input()
    target: Any = asked.example_list
    if "context" in document:
        target = asked.example_list_with_context
        target.context.CopyFrom(_example(document["context"]))
    examples = document.get("examples")
    if "examples" not in document:
        raise _malformed(document, "When method is classify, key 'examples' is expected and was not found")
    if not isinstance(examples, list):
        raise _malformed(document, "Expecting 'examples' value to be an list/array")
    if not examples:
        raise _malformed(document, "'examples' value is an empty array")
    target.examples.extend(_example(example) for example in examples)
    return asked


def _rows(instances: list[Any], inputs: Inputs) -> dict[str, Array]:
    named = _is_object(instances[0])
    if not isinstance(instances[0], dict) and len(inputs) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required "
            "as per tensorinfo_map"
        )
    rows: dict[str, list[tuple[tuple[int, ...], list[Any]]]] = {}
    for index, instance in enumerate(instances):
        if named != _is_object(instance):
            wanted, got = ("object", "list") if named else ("value/list", "object")
            raise invalid_argument(f"Expecting {wanted} but got {got} at item {index} of input list")
        items = instance.items() if named else [(next(iter(inputs)), instance)]
        for alias, value in items:
            try:
                _add_row(rows, inputs, alias, value)
            except StatusError as error:
                key = f" key: {alias}" if named else ""
                raise invalid_argument(
                    f"Failed to process element: {index}{key} of 'instances' list. Error: {error}"
                ) from None
        if named and set(instance) != set(inputs):
            raise invalid_argument(
                f"Failed to process element: {index} of 'instances' list. JSON object: {_quote(instance)} "
                f"keys must be equal to: {','.join(sorted(inputs))}"
            )
    return {alias: _stacked(values, inputs[alias].dtype) for alias, values in rows.items()}


def _add_row(
    rows: dict[str, list[tuple[tuple[int, ...], list[Any]]]], inputs: Inputs, alias: str, value: Any
) -> None:
    if alias not in inputs:
        raise invalid_argument(f"JSON object: does not have named input: {alias}")
    shape, elements = _elements(value, inputs[alias].dtype)
    row = rows.setdefault(alias, [])
    if row and row[0][0] != shape:
        first, first_elements = row[0]
        if len(first_elements) != len(elements):
            raise invalid_argument(f"Expecting tensor size: {len(first_elements)} but got: {len(elements)}")
        raise invalid_argument(f"Expecting shape {_shape(first)} but got: {_shape(shape)}")
    row.append((shape, elements))


def _stacked(rows: list[tuple[tuple[int, ...], list[Any]]], datatype: int) -> Array:
    elements = [element for _, row in rows for element in row]
    return _array(elements, (len(rows), *rows[0][0]), datatype)


def _columns(value: Any, inputs: Inputs) -> dict[str, Array]:
    if not _is_object(value):
        if len(inputs) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required "
                "as per tensorinfo_map"
            )
        value = {next(iter(inputs)): value}
    arrays = {}
    for alias, info in inputs.items():
        if alias not in value:
            raise invalid_argument(f"Missing named input: {alias} in 'inputs' object.")
        shape, elements = _elements(value[alias], info.dtype)
        arrays[alias] = _array(elements, shape, info.dtype)
    return arrays


def _elements(value: Any, datatype: int) -> tuple[tuple[int, ...], list[Any]]:
    """Shape and checked elements, row-major, of a value or of lists of lists."""
    shape: list[int] = []
    inner = value
    while isinstance(inner, list):
        shape.append(len(inner))
        if not inner:
            break
        inner = inner[0]
    found: list[Any] = []
    _collect(value, 0, shape, found)
    return tuple(shape), _checked(found, datatype)


def _collect(value: Any, level: int, shape: list[int], found: list[Any]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid_argument(
                f"JSON Value: {_quote(value)} found at incorrect level: {level + 1} in the JSON DOM. "
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
            _check_decimal(value, datatype)
    elif datatype in _INT_RANGES:
        allowed = _INT_RANGES[datatype]
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
            f"Conversion of JSON Value: {_quote(found[0])} to type: {type_name(datatype)}",
        )
    return found


def _check_decimal(value: Any, datatype: int) -> None:
    if type(value) is int:
        lossless = abs(value) <= _EXACT_INTEGERS[datatype]
    elif type(value) is float:
        largest = float(np.finfo(np.float32 if datatype == types_pb2.DT_FLOAT else np.float64).max)
        lossless = not math.isfinite(value) or abs(value) <= largest
    else:
        raise _wrong_type(value, datatype)
    if not lossless:
        raise invalid_argument(
            f"Cannot convert JSON value: {_quote(value)} to {type_name(datatype)} without loss of precision."
        )


def _string(value: Any, datatype: int) -> bytes:
    if isinstance(value, str):
        return _utf8(value)
    if isinstance(value, dict):
        return _decoded(value)
    raise _wrong_type(value, datatype)


def _array(elements: list[Any], shape: tuple[int, ...], datatype: int) -> Array:
    if datatype in _INT_RANGES:
        wide = np.uint64 if datatype == types_pb2.DT_UINT64 else np.int64
        return np.array(elements, wide).astype(NUMPY_TYPES[datatype]).reshape(shape)
    array = np.empty(len(elements), NUMPY_TYPES[datatype])
    array[:] = elements
    return array.reshape(shape)


def _example(value: Any) -> example_pb2.Example:
    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {_type_name(value)}")
    example = example_pb2.Example()
    for name, content in value.items():
        feature = example.features.feature[name]
        for element in content if isinstance(content, list) else [content]:
            _add_to_feature(feature, name, element)
    return example


def _add_to_feature(feature: example_pb2.Feature, name: str, value: Any) -> None:
    kind, converted = _feature_value(name, value)
    present = feature.WhichOneof("kind")
    if present not in (None, kind):
        raise invalid_argument(
            f"Unexpected element type in feature: {name} expecting type: {str(present).removesuffix('_list')}"
        )
    getattr(feature, kind).value.append(converted)


def _feature_value(name: str, value: Any) -> tuple[str, Any]:
    if isinstance(value, bool):
        return "int64_list", int(value)
    if isinstance(value, str):
        return "bytes_list", _utf8(value)
    if isinstance(value, dict) and _is_base64(value):
        return "bytes_list", _decoded(value)
    if isinstance(value, float):
        _check_decimal(value, types_pb2.DT_FLOAT)
        return "float_list", value
    if isinstance(value, int):
        if value not in _INT_RANGES[types_pb2.DT_INT64]:
            raise invalid_argument(f"Feature: {name} has uint64 element. Only int64 is supported.")
        return "int64_list", value
    raise invalid_argument(f"Feature: {name} has element with unexpected JSON type: {_type_name(value)}")


def _is_base64(value: dict[str, Any]) -> bool:
    return list(value) == ["b64"] and isinstance(value["b64"], str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _decoded(value: dict[str, Any]) -> bytes:
    if not _is_base64(value):
        raise invalid_argument(f"JSON Value: {_quote(value)} not formatted correctly for base64 data")
    text = "".join(value["b64"].split()).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid_argument("Unable to base64 decode") from None


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _malformed(document: dict[str, Any], text: str) -> StatusError:
    return invalid_argument(f"JSON Value: {_quote(document)} {text}")


def _wrong_type(value: Any, datatype: int) -> StatusError:
    return invalid_argument(
        f"JSON Value: {_quote(value)} Type: {_type_name(value)} "
        f"is not of expected type: {type_name(datatype)}"
    )


def _type_name(value: Any) -> str:
    return str(value) if isinstance(value, bool) else _TYPE_NAMES[type(value)]


def _quote(value: Any) -> str:
    """Return the value as indented JSON; unlike the official server's, cut where it is very long."""
    text = json.dumps(value, indent=4, ensure_ascii=False)
    return text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "..."


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"
