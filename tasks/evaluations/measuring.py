"""Metrics of a checkpoint, as `Estimator.evaluate` measures them."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.schema.pipeline import Recipe
from tasks.core.artifacts import Run
from tasks.estimators import assembly
from tasks.examples.preprocessing import preprocess_of
from tasks.examples.tf_examples import Preprocess, batches


@dataclass(frozen=True)
class Measure:
    """An Estimator, and how examples are read for it."""

    recipe: Recipe
    estimator: Any
    preprocess: Preprocess | None

    @classmethod
    def of(cls, recipe: Recipe, run: Run, session_config: Any, scratch: Path | None = None) -> Measure:
        """Build the recipe's Estimator; with `scratch` its event files go there, not to the run's."""
        at = run if scratch is None else replace(run, folder=scratch)
        estimator = assembly.build(recipe.model, recipe.training, recipe.data, at, session_config)
        return cls(recipe, estimator, preprocess_of(recipe.model, run))

    def batches(self, files: Sequence[Path]) -> Any:
        """Return a tf.data.Dataset of (features, labels): every example once, in the order of the files."""
        return batches(files, self.recipe.data, self.recipe.evaluation.batch_size, self.preprocess)

    def metrics(self, checkpoint: Path, files: Sequence[Path]) -> dict[str, float]:
        """Return every metric that is a number, over all examples of the files."""
        found = self.estimator.evaluate(lambda: self.batches(files), checkpoint_path=str(checkpoint))
        return plain_numbers(found)


def plain_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return those metrics that are numbers; NumPy's float32 is no numbers.Real, but its .item() is."""
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
    return {name: float(value) for name, value in plain.items() if isinstance(value, numbers.Real)}
