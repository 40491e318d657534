"""Classify and Regress: questions put as tf.Examples.

Facts from tensorflow_serving/servables/tensorflow: classifier.cc, regressor.cc, util.cc.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    input_pb2,
    model_pb2,
    regression_pb2,
)

from model_server.base.status import invalid_argument, naming
from model_server.models.servable import Servable
from model_server.observability.request_facts import FACTS
from model_server.requests.predict import (
    CLASSIFY_METHOD,
    DEFAULT_SIGNATURE,
    REGRESS_METHOD,
    fill_model_spec,
)
from model_server.tensorflow_c.tensors import Array, type_name

_MATRIX = 2  # dimensions


@dataclass(frozen=True)
class Question:
    """A checked signature: the tensor that takes serialized Examples, and the tensors asked of it."""

    feed: str
    outputs: dict[str, str]


def classify(
    servable: Servable,
    request: classification_pb2.ClassificationRequest,
    timeout_seconds: float | None,
    check_method_name: bool,
) -> classification_pb2.ClassificationResponse:
    """Classes with labels and scores of each Example."""
    key, signature = _signature(servable, request.model_spec)
    question = classify_question(signature, check_method_name)
    values, count = _answers(servable, question, request.input, timeout_seconds)
    response = classification_pb2.ClassificationResponse()
    fill_classifications(response.result, servable, question, values, count)
    fill_model_spec(response.model_spec, request.model_spec, key, servable)
    return response


def regress(
    servable: Servable,
    request: regression_pb2.RegressionRequest,
    timeout_seconds: float | None,
    check_method_name: bool,
) -> regression_pb2.RegressionResponse:
    """One value for each Example."""
    key, signature = _signature(servable, request.model_spec)
    question = regress_question(signature, check_method_name)
    values, count = _answers(servable, question, request.input, timeout_seconds)
    response = regression_pb2.RegressionResponse()
    fill_regressions(response.result, servable, question, values, count)
    fill_model_spec(response.model_spec, request.model_spec, key, servable)
    return response


def classify_question(signature: meta_graph_pb2.SignatureDef, check_method_name: bool) -> Question:
    """Raise StatusError where a signature cannot classify."""
    if check_method_name and signature.method_name != CLASSIFY_METHOD:
        raise invalid_argument(
            f"Expected classification signature method_name to be {CLASSIFY_METHOD}. "
            f"Was: {signature.method_name}"
        )
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid_argument(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if "inputs" not in signature.inputs:
        raise invalid_argument(f"No classification inputs found in SignatureDef: {signature}")
    outputs = {
        alias: signature.outputs[alias].name for alias in ("classes", "scores") if alias in signature.outputs
    }
    if not outputs:
        raise invalid_argument(
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature was: {signature}"
        )
    return Question(signature.inputs["inputs"].name, outputs)


def regress_question(signature: meta_graph_pb2.SignatureDef, check_method_name: bool) -> Question:
    """Raise StatusError where a signature cannot regress."""
    if check_method_name and signature.method_name != REGRESS_METHOD:
        raise invalid_argument(
            f"Expected regression signature method_name to be {REGRESS_METHOD}. Was: {signature.method_name}"
        )
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid_argument("Expected one output Tensor.")
    if "inputs" not in signature.inputs:
        raise invalid_argument(f"No regression inputs found in SignatureDef: {signature}")
    if "outputs" not in signature.outputs:
        raise invalid_argument(f"No regression outputs found in SignatureDef: {signature}")
    return Question(signature.inputs["inputs"].name, {"outputs": signature.outputs["outputs"].name})


def fill_classifications(
    result: classification_pb2.ClassificationResult,
    servable: Servable,
    question: Question,
    values: dict[str, Array],
    count: int,
) -> None:
    """Labels and scores row by row; a label is empty and a score 0 where the signature has none."""
    for alias, datatype in (("classes", types_pb2.DT_STRING), ("scores", types_pb2.DT_FLOAT)):
        if alias in values:
            _check_class_tensor(
                alias, values[alias], servable.datatype(question.outputs[alias]), datatype, count
            )
    classes, scores = values.get("classes"), values.get("scores")
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise invalid_argument(
            "Tensors class and score should match in dim_size(1). "
            f"Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    shape = scores.shape if classes is None and scores is not None else classes.shape  # type: ignore[union-attr]
    labels = np.full(shape, b"", np.object_) if classes is None else classes
    numbers = np.zeros(shape, np.float32) if scores is None else scores
    for row_labels, row_numbers in zip(labels.tolist(), numbers.tolist(), strict=True):
        row = result.classifications.add()
        for label, number in zip(row_labels, row_numbers, strict=True):
            row.classes.add(label=_text(label), score=number)


def fill_regressions(
    result: regression_pb2.RegressionResult,
    servable: Servable,
    question: Question,
    values: dict[str, Array],
    count: int,
) -> None:
    """One value an Example, from a tensor of shape [count] or [count, 1]."""
    output = values["outputs"]
    if output.ndim not in (1, _MATRIX) or (output.ndim == _MATRIX and output.shape[1] != 1):
        raise invalid_argument(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{_shape(output)}"
        )
    if len(output) != count:
        raise invalid_argument(f"Input batch size did not match output batch size: {count} vs. {len(output)}")
    datatype = servable.datatype(question.outputs["outputs"])
    if datatype != types_pb2.DT_FLOAT:
        raise invalid_argument(f"Expected output Tensor of DT_FLOAT.  Got: DT_{type_name(datatype).upper()}")
    for value in output.reshape(-1).tolist():
        result.regressions.add(value=value)


def _signature(servable: Servable, spec: model_pb2.ModelSpec) -> tuple[str, meta_graph_pb2.SignatureDef]:
    key = spec.signature_name or DEFAULT_SIGNATURE
    if key not in servable.signatures:
        text = f"No signature was found with the name: {key}"
        raise invalid_argument(naming(text, "Signatures", sorted(servable.signatures)))
    FACTS.signature = key
    return key, servable.signatures[key]


def answers(
    servable: Servable,
    feeds: Sequence[str],
    fetches: Sequence[str],
    asked: input_pb2.Input,
    timeout_seconds: float | None,
) -> tuple[dict[str, Array], int]:
    """Feed each of `feeds` with the Examples; return fetched tensors by name, and the Examples' number."""
    serialized = serialized_examples(asked)
    if not serialized:
        raise invalid_argument("Input is empty.")
    FACTS.examples = len(serialized)
    feed = np.empty(len(serialized), np.object_)
    feed[:] = serialized
    values = servable.run(dict.fromkeys(feeds, feed), fetches, timeout_seconds)
    return dict(zip(fetches, values, strict=True)), len(serialized)


def _answers(
    servable: Servable, question: Question, asked: input_pb2.Input, timeout_seconds: float | None
) -> tuple[dict[str, Array], int]:
    """Return the output tensors by alias, and the number of Examples."""
    fetches = list(question.outputs.values())
    by_name, count = answers(servable, [question.feed], fetches, asked, timeout_seconds)
    return {alias: by_name[name] for alias, name in question.outputs.items()}, count


def serialized_examples(asked: input_pb2.Input) -> list[bytes]:
    """Each Example's bytes, its context's before it: a protobuf parser merges the two, the latter winning."""
    if asked.WhichOneof("kind") == "example_list_with_context":
        context = asked.example_list_with_context.context.SerializeToString()
        return [context + each.SerializeToString() for each in asked.example_list_with_context.examples]
    return [each.SerializeToString() for each in asked.example_list.examples]


def _check_class_tensor(alias: str, value: Array, datatype: int, expected: int, count: int) -> None:
    if value.ndim != _MATRIX:
        raise invalid_argument(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(value)}")
    if datatype != expected:
        raise invalid_argument(
            f"Expected {alias} Tensor of DT_{type_name(expected).upper()}. "
            f"Got: DT_{type_name(datatype).upper()}"
        )
    if len(value) != count:
        raise invalid_argument(f"Expected {alias} output batch size of {count}. Got: {len(value)}")


def _shape(value: Array) -> str:
    return f"[{','.join(str(size) for size in value.shape)}]"


def _text(label: Any) -> str:
    """Return a class label as the string field takes it; bytes that are no UTF-8 are shown, not refused."""
    return label.decode("utf-8", "backslashreplace") if isinstance(label, bytes) else str(label)
