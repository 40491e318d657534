"""Predict (tensorflow_serving/servables/tensorflow/predict_util.cc)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import model_pb2, predict_pb2

from model_server.base.status import Code, StatusError, invalid_argument, naming
from model_server.models.servable import Servable
from model_server.observability.request_facts import FACTS
from model_server.tensorflow_c import op_libraries
from model_server.tensorflow_c.tensors import Array, filled_bytes, to_array, to_proto, type_name

DEFAULT_SIGNATURE = "serving_default"
PREDICT_METHOD = "tensorflow/serving/predict"
CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"
_MOST_FILLED_BYTES = 64 * 2**20  # of a request: a shape costs a few bytes, and asks for any amount of memory


def predict(
    servable: Servable,
    request: predict_pb2.PredictRequest,
    timeout_seconds: float | None,
    check_method_name: bool,
) -> predict_pb2.PredictResponse:
    """Return the outputs that the request asks for, all by default, in typed fields."""
    signature_name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(signature_name)
    if signature is None:
        text = f'Serving signature key "{signature_name}" not found.'
        raise StatusError(Code.FAILED_PRECONDITION, naming(text, "Signatures", sorted(servable.signatures)))
    FACTS.signature = signature_name
    if check_method_name:
        check_method_name_of(signature)
    _check_input_count(signature, request)
    arrays = _arrays(signature, request.inputs)
    outputs = run(servable, signature, arrays, request.output_filter, timeout_seconds)
    response = predict_pb2.PredictResponse()
    fill_model_spec(response.model_spec, request.model_spec, signature_name, servable)
    for alias, (value, datatype) in outputs.items():
        response.outputs[alias].CopyFrom(to_proto(value, datatype))
    return response


def run(
    servable: Servable,
    signature: meta_graph_pb2.SignatureDef,
    arrays: Mapping[str, Array],
    output_filter: Sequence[str],
    timeout_seconds: float | None,
) -> dict[str, tuple[Array, int]]:
    """Array and DataType of each output in `output_filter` (empty: all), from the inputs by alias."""
    if op_libraries.are_loaded():
        for alias, array in arrays.items():
            _check_shape(alias, list(array.shape), signature.inputs[alias])
    aliases = output_aliases(signature, output_filter)
    names = [signature.outputs[alias].name for alias in aliases]
    feeds = {signature.inputs[alias].name: array for alias, array in arrays.items()}
    values = servable.run(feeds, names, timeout_seconds)
    return {
        alias: (value, servable.datatype(name))
        for alias, name, value in zip(aliases, names, values, strict=True)
    }


def fill_model_spec(
    spec: model_pb2.ModelSpec, requested: model_pb2.ModelSpec, signature_name: str, servable: Servable
) -> None:
    """Name as requested, signature as used, version as resolved."""
    spec.name = requested.name
    spec.signature_name = signature_name
    spec.version.value = servable.version


def check_method_name_of(signature: meta_graph_pb2.SignatureDef) -> None:
    """Raise StatusError unless the signature is one of the three kinds that Predict runs."""
    expected = (PREDICT_METHOD, CLASSIFY_METHOD, REGRESS_METHOD)
    if signature.method_name not in expected:
        raise StatusError(
            Code.INTERNAL,
            f"Expected prediction signature method_name to be one of {{{', '.join(expected)}}}. "
            f"Was: {signature.method_name}",
        )


def _check_input_count(signature: meta_graph_pb2.SignatureDef, request: predict_pb2.PredictRequest) -> None:
    sent, expected = set(request.inputs), set(signature.inputs)
    if len(sent) > len(expected) or (len(sent) < len(expected) and not signature.defaults):
        raise invalid_argument(
            f"input size does not match signature: {len(sent)}!={len(expected)} "
            f"len({_set(sent)}) != len({_set(expected)}). "
            f"Sent extra: {_set(sent - expected)}. Missing but required: {_set(expected - sent)}."
        )


def _arrays(
    signature: meta_graph_pb2.SignatureDef, inputs: Mapping[str, tensor_pb2.TensorProto]
) -> dict[str, Array]:
    """Values by input alias, from the request or the signature's defaults (saved_model::GetInputValues)."""
    arrays = {}
    filled = 0
    for index, (alias, info) in enumerate(signature.inputs.items()):
        proto = inputs[alias] if alias in inputs else _default(signature, alias, info.name, inputs)
        try:
            if size := filled_bytes(proto):
                filled += size
                _check_filled(index, alias, proto, info, filled)
            arrays[alias] = to_array(proto)
        except (ValueError, MemoryError):
            raise invalid_argument(f"tensor parsing error: {alias}") from None
    for alias in inputs:
        if alias not in signature.inputs:
            raise invalid_argument(
                f"Inputs contains invalid name. Used request inputs: {_names(signature.inputs)}, "
                f"request input: {_names(inputs)}"
            )
    return arrays


def _check_filled(
    index: int, alias: str, proto: tensor_pb2.TensorProto, info: meta_graph_pb2.TensorInfo, filled: int
) -> None:
    """Raise StatusError if a tensor that holds fewer values than its shape is not worth allocating."""
    if proto.dtype != info.dtype:
        expected, found = type_name(info.dtype), type_name(proto.dtype)
        raise invalid_argument(f"Expects arg[{index}] to be {expected} but {found} is provided")
    _check_shape(alias, [dim.size for dim in proto.tensor_shape.dim], info)
    if filled > _MOST_FILLED_BYTES:
        raise invalid_argument(
            f"tensor parsing error: {alias}: fewer values than elements, and filled the tensors would take "
            f"{filled} bytes, expected at most {_MOST_FILLED_BYTES}. Send all values."
        )


def _check_shape(alias: str, found_sizes: Sequence[int], info: meta_graph_pb2.TensorInfo) -> None:
    sizes = [dim.size for dim in info.tensor_shape.dim]
    fits = info.tensor_shape.unknown_rank or (
        len(sizes) == len(found_sizes)
        and all(size in (-1, found) for size, found in zip(sizes, found_sizes, strict=True))
    )
    if not fits:
        raise invalid_argument(f"tensor parsing error: {alias}: shape {found_sizes}, expected {sizes}")


def _default(
    signature: meta_graph_pb2.SignatureDef,
    alias: str,
    feed_name: str,
    inputs: Mapping[str, tensor_pb2.TensorProto],
) -> tensor_pb2.TensorProto:
    if alias in signature.defaults:
        return signature.defaults[alias]
    raise invalid_argument(
        f"Signature input alias: {alias}(feed name: {feed_name}) not found in request and no default value "
        f"provided. Inputs expected to be in the request {_set(inputs)}, or default input alias set: "
        f"{_names(signature.defaults)}"
    )


def output_aliases(signature: meta_graph_pb2.SignatureDef, output_filter: Sequence[str]) -> list[str]:
    """Return the outputs that are asked for, all by default. Raises StatusError for one that is not there."""
    seen: set[str] = set()
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {_set(signature.outputs)}."
            )
        if alias in seen:
            raise invalid_argument(f"duplicate output tensor alias: {alias}")
        seen.add(alias)
    return list(output_filter) or sorted(signature.outputs)


def _set(names: Iterable[str]) -> str:
    return f"{{{_names(names)}}}"


def _names(names: Iterable[str]) -> str:
    return ",".join(sorted(names))
