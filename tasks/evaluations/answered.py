"""What a checkpoint answers for examples, beside their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.evaluations.measuring import Measure

MOST_EXAMPLES = 50_000
_KEYS = {"int64": "class_ids", "string": "classes", "float32": "predictions"}
"""What tf.estimator's heads call their answers, by the label's dtype."""


@dataclass(frozen=True)
class Answered:
    """A label, and the prediction of it: [n] each."""

    label: str
    expected: NDArray[Any]
    predicted: NDArray[Any]

    @property
    def is_number(self) -> bool:
        """Whether it is a quantity, and not a class."""
        return bool(self.expected.dtype.kind == "f")


def answers(asked: Measure, checkpoint: Path, files: Sequence[Path]) -> list[Answered]:
    """Return each label with one value an example that the model has a prediction of.

    A prediction is found by the label's name, as `(label, class_ids)` of a MultiHead, or where there is
    one label as `class_ids` (int64), `classes` (string) or `predictions` (float32). At most the first
    MOST_EXAMPLES are asked.
    """
    if not asked.recipe.data.label:
        return []
    most = max(1, MOST_EXAMPLES // asked.recipe.evaluation.batch_size)
    labelled = [labels for _, labels in asked.batches(files).take(most)]
    predicted = list(
        asked.estimator.predict(
            lambda: asked.batches(files).take(most),
            checkpoint_path=str(checkpoint), yield_single_examples=False,
        )
    )  # fmt: skip
    specs = asked.recipe.data.label
    found = []
    for label, spec in specs.items():
        key = _key(label, spec.dtype, predicted[0], only=len(specs) == 1)
        expected = _column([each if len(specs) == 1 else each[label] for each in labelled])
        answer = None if key is None else _column([batch[key] for batch in predicted])
        if expected is not None and answer is not None and len(expected) == len(answer):
            found.append(Answered(label, expected, answer))
    return found


def _key(label: str, dtype: str, predictions: Mapping[Any, Any], *, only: bool) -> Any:
    named = [label, (label, _KEYS[dtype]), *([_KEYS[dtype]] if only else [])]
    return next((name for name in named if name in predictions), None)


def _column(batches: Sequence[Any]) -> NDArray[Any] | None:
    """Return [n] where there is one value an example, else None."""
    if not all(hasattr(batch, "shape") for batch in batches):
        return None  # sparse and ragged labels
    whole = np.concatenate([np.asarray(batch) for batch in batches])
    return whole.reshape(-1) if whole.size == len(whole) else None
