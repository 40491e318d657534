"""Metrics of a SavedModel that was trained elsewhere: it brings none, so they follow from label and output.

    label    output                        metrics
    float32  as the label                  average_loss (squared error) and its root, mean_absolute_error
    int64    [n] or [n, 1], float          accuracy, average_loss (cross entropy, nats), auc
    int64    [n, classes], float           accuracy, average_loss (cross entropy, nats)
    any      [n] or [n, 1], int or string  accuracy

A float output for classes is taken for probabilities if each lies in 0 to 1 (and rows add up to 1), else
for logits. With several labels the metrics are named `accuracy/<label>`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.schema.pipeline import DataConfig, ModelConfig, Recipe
from tasks.answers.request_inputs import request_inputs
from tasks.core.artifacts import Signature
from tasks.core.errors import ModelError
from tasks.evaluations.answered import Answered
from tasks.examples.tf_examples import parsing_spec, read_records
from tasks.exports import given_models

_NAMES = {
    "int64": ("probabilities", "scores", "logits", "class_ids", "classes", "predictions"),
    "string": ("classes", "class_ids", "predictions"),
    "float32": ("predictions", "outputs"),
}
_LEAST_PROBABILITY = 1e-7
_HALF = 0.5


@dataclass(frozen=True)
class Source:
    """The output that predicts a label."""

    label: str
    signature: Signature
    output: str


def sources(model: ModelConfig, data: DataConfig, found: Sequence[Signature]) -> tuple[Source, ...]:
    """Return the output for each label: by `model.outputs`, its name, or the only one. Raises ModelError."""
    return tuple(_source(label, model, data, found) for label in data.label)


def names(model: ModelConfig, data: DataConfig, found: Sequence[Signature]) -> list[str]:
    """Return the metrics that `measure` reports, sorted, as far as signatures tell."""
    several = len(data.label) > 1
    known: set[str] = set()
    for each in sources(model, data, found):
        known |= {_named(name, each.label, several) for name in _names_of(each, data)}
    return sorted(known)


def _names_of(each: Source, data: DataConfig) -> tuple[str, ...]:
    form = each.signature.outputs[each.output]
    if data.label[each.label].dtype == "float32":
        return ("average_loss", "mean_absolute_error", "root_mean_squared_error")
    if not form.startswith(("float", "bfloat", "half")):
        return ("accuracy",)
    classes = form.partition("[")[2].rstrip("]").split(",")[1:]
    return ("accuracy", "average_loss") if classes not in ([], ["1"]) else ("accuracy", "auc", "average_loss")


def _source(label: str, model: ModelConfig, data: DataConfig, found: Sequence[Signature]) -> Source:
    chosen = model.outputs.get(label)
    if chosen is not None:
        name, _, output = chosen.rpartition(":")
        for each in found:
            if each.name == (name or "serving_default") and output in each.outputs:
                return Source(label, each, output)
        raise ModelError(f"model.outputs.{label}: there is no {chosen!r}", f"there are: {_listed(found)}")
    wanted = (label, *_NAMES[data.label[label].dtype])
    for each in sorted(found, key=lambda one: (one.name != "serving_default", one.name)):
        named = [output for output in wanted if output in each.outputs]
        if named or (len(each.outputs) == 1 and len(data.label) == 1):
            return Source(label, each, named[0] if named else next(iter(each.outputs)))
    message = f"it is not known which output of the SavedModel predicts the label {label!r}"
    raise ModelError(message, f"model.outputs: {{{label}: SIGNATURE:OUTPUT}}, one of {_listed(found)}")


def _listed(found: Sequence[Signature]) -> str:
    return ", ".join(
        f"{each.name}:{output} ({form})" for each in found for output, form in each.outputs.items()
    )


@dataclass(frozen=True)
class Predicted:
    """Labels and the outputs that predict them, of all examples of some files."""

    source: Source
    expected: NDArray[Any]
    output: NDArray[Any]

    def answered(self) -> Answered | None:
        """Return one value an example beside its label, for a picture; None if there is no such."""
        values = self._values()
        expected = self.expected.reshape(-1)
        return Answered(self.source.label, expected, values) if values.shape == expected.shape else None

    def metrics(self) -> Iterator[tuple[str, float]]:
        """Yield the metrics by name."""
        expected = self.expected.reshape(len(self.expected), -1)
        if self.expected.dtype.kind == "f":
            errors = self.output.astype(np.float64).reshape(expected.shape) - expected
            squared = float(np.mean(errors**2))
            yield "average_loss", squared
            yield "mean_absolute_error", float(np.mean(np.abs(errors)))
            yield "root_mean_squared_error", squared**0.5
            return
        truth = expected[:, 0]
        yield "accuracy", float(np.mean(_as_text(self._values()) == _as_text(truth)))
        if self.output.dtype.kind != "f":
            return
        by_class = self._probabilities()
        picked = by_class[np.arange(len(truth)), np.clip(truth.astype(int), 0, by_class.shape[1] - 1)]
        yield "average_loss", float(-np.mean(np.log(np.maximum(picked, _LEAST_PROBABILITY))))
        if self._is_binary() and len(set(truth.tolist())) > 1:
            from sklearn.metrics import roc_auc_score

            yield "auc", float(roc_auc_score(truth, by_class[:, 1]))

    def _is_binary(self) -> bool:
        return self.output.size == len(self.output)

    def _values(self) -> NDArray[Any]:
        """Return [n]: the quantity, or the class."""
        flat = self.output.reshape(len(self.output), -1)
        if self.expected.dtype.kind == "f" or self.output.dtype.kind != "f":
            return flat[:, 0] if flat.shape[1] == 1 else flat.reshape(-1)
        return np.asarray(np.argmax(self._probabilities(), axis=1))

    def _probabilities(self) -> NDArray[Any]:
        """Return [n, classes], rows adding up to 1."""
        flat = self.output.astype(np.float64).reshape(len(self.output), -1)
        within = bool(np.all((flat >= 0) & (flat <= 1)))
        if self._is_binary():
            positive = flat if within else 1 / (1 + np.exp(-flat))
            return np.concatenate([1 - positive, positive], axis=1)
        if within and np.allclose(flat.sum(axis=1), 1, atol=1e-3):
            return flat
        shifted = np.exp(flat - flat.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def _as_text(values: NDArray[Any]) -> NDArray[Any]:
    return np.array([each.decode() if isinstance(each, bytes) else str(each) for each in values.tolist()])


def predict(saved_model: Path, recipe: Recipe, files: Sequence[Path], session_config: Any) -> list[Predicted]:
    """Return label and output of every example of the files, for each label."""
    import tensorflow as tf

    found = given_models.signatures(saved_model, recipe.data)
    asked = sources(recipe.model, recipe.data, found)
    records = read_records(files)
    spec, size = parsing_spec(recipe.data.label), recipe.evaluation.batch_size
    expected: dict[str, list[Any]] = {each.label: [] for each in asked}
    outputs: dict[str, list[Any]] = {each.label: [] for each in asked}
    with given_models.loaded(saved_model, found, session_config) as model:
        for first in range(0, len(records), size):
            batch = records[first : first + size]
            labels = tf.io.parse_example(tf.constant(batch, tf.string), spec)
            answers: dict[str, Mapping[str, Any]] = {}
            for each in asked:
                name = each.signature.name
                if name not in answers:
                    inputs = request_inputs(each.signature, batch, recipe.data.features)
                    answers[name] = model.run(each.signature, inputs).answers()
                expected[each.label].append(labels[each.label].numpy())
                outputs[each.label].append(answers[name][each.output])
    return [
        Predicted(each, np.concatenate(expected[each.label]), np.concatenate(outputs[each.label]))
        for each in asked
    ]


def measure(predicted: Sequence[Predicted]) -> dict[str, float]:
    """Return the metrics of all labels."""
    several = len(predicted) > 1
    return {
        _named(name, each.source.label, several): value
        for each in predicted
        for name, value in each.metrics()
    }


def _named(metric: str, label: str, several: bool) -> str:
    return f"{metric}/{label}" if several else metric
