"""JSON request bodies to arrays and Examples (tensorflow_serving/util/json_tensor.cc)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tensorflow.core.example import example_pb2
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import input_pb2

from model_server.api.rest.json_values import (
    INT_RANGES,
    check_decimal,
    decoded,
    flatten,
    is_base64,
    is_object,
    json_type,
    quote,
    to_array,
    utf8,
)
from model_server.base.status import StatusError, invalid_argument
from model_server.tensorflow_c.tensors import Array

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

_SURROGATE = re.compile(rb"\\u[dD][89abAB]|\\u[dD][c-fC-F]")

Inputs = Mapping[str, meta_graph_pb2.TensorInfo]
Row = tuple[tuple[int, ...], list[Any]]  # shape and elements


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
        document = json.loads(body.decode())
    except json.JSONDecodeError as error:
        text = _PARSE_ERRORS.get(error.msg, error.msg)
        raise invalid_argument(f"JSON Parse error: {text} at offset: {error.pos}") from None
    except (ValueError, RecursionError) as error:  # bytes that are no UTF-8, endless digits or brackets
        raise invalid_argument(f"JSON Parse error: {error} at offset: 0") from None
    if _SURROGATE.search(body) and not _is_text(document):
        raise invalid_argument("JSON Parse error: The surrogate pair in string is invalid. at offset: 0")
    if not isinstance(document, dict):
        raise invalid_argument(f"JSON Value: {quote(document)} Is not object")
    return document


def _is_text(document: Any) -> bool:
    """Return whether all strings can be written as UTF-8: half of a surrogate pair cannot."""
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def signature_name(document: dict[str, Any]) -> str:
    """Return the signature asked for, empty for the default one."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid_argument(
            f"JSON Value: {quote(document)} not formatted correctly. "
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
    named = is_object(instances[0])
    if not isinstance(instances[0], dict) and len(inputs) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required "
            "as per tensorinfo_map"
        )
    rows: dict[str, list[Row]] = {}
    for index, instance in enumerate(instances):
        if named != is_object(instance):
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
                f"Failed to process element: {index} of 'instances' list. JSON object: {quote(instance)} "
                f"keys must be equal to: {','.join(sorted(inputs))}"
            )
    return {alias: _stacked(values, inputs[alias].dtype) for alias, values in rows.items()}


def _add_row(rows: dict[str, list[Row]], inputs: Inputs, alias: str, value: Any) -> None:
    if alias not in inputs:
        raise invalid_argument(f"JSON object: does not have named input: {alias}")
    shape, found = flatten(value, inputs[alias].dtype)
    row = rows.setdefault(alias, [])
    if row and row[0][0] != shape:
        first, first_elements = row[0]
        if len(first_elements) != len(found):
            raise invalid_argument(f"Expecting tensor size: {len(first_elements)} but got: {len(found)}")
        raise invalid_argument(f"Expecting shape {_shape(first)} but got: {_shape(shape)}")
    row.append((shape, found))


def _stacked(rows: list[Row], datatype: int) -> Array:
    found = [element for _, row in rows for element in row]
    return to_array(found, (len(rows), *rows[0][0]), datatype)


def _columns(value: Any, inputs: Inputs) -> dict[str, Array]:
    if not is_object(value):
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
        shape, found = flatten(value[alias], info.dtype)
        arrays[alias] = to_array(found, shape, info.dtype)
    return arrays


def _example(value: Any) -> example_pb2.Example:
    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {json_type(value)}")
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
        return "bytes_list", utf8(value)
    if isinstance(value, dict) and is_base64(value):
        return "bytes_list", decoded(value)
    if isinstance(value, float):
        check_decimal(value, types_pb2.DT_FLOAT)
        return "float_list", value
    if isinstance(value, int):
        if value not in INT_RANGES[types_pb2.DT_INT64]:
            raise invalid_argument(f"Feature: {name} has uint64 element. Only int64 is supported.")
        return "int64_list", value
    raise invalid_argument(f"Feature: {name} has element with unexpected JSON type: {json_type(value)}")


def _malformed(document: dict[str, Any], text: str) -> StatusError:
    return invalid_argument(f"JSON Value: {quote(document)} {text}")


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"
