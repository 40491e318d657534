"""Program of the stage `evaluate`: metrics of one checkpoint on the eval split, and what explains them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from configs.schema import AnswersConfig, Recipe
from tasks.answers import limits, numerics, predictions
from tasks.answers.limits import Limits
from tasks.artifacts import Baseline, Checkpoint, Evaluation, Examples, Picture, Run
from tasks.estimators import accelerators
from tasks.evaluations import answered, baselines, slices, training_curves
from tasks.evaluations.measuring import Measure
from tasks.reports import pictures
from tasks.tensorflow_errors import explained

Progress = Callable[[Mapping[str, Any]], None]


def run(
    progress: Progress, recipe: Recipe, answers: AnswersConfig, examples: Examples, checkpoint: Checkpoint,
    run: Run, served: tuple[int, Path] | None = None, recipe_of_served: Recipe | None = None,
) -> Evaluation:  # fmt: skip
    """Return every metric that is a number; no thresholds are looked at here.

    `served` is the version to compare with, number and folder, and `recipe_of_served` what it was made
    of, where that is known and is not tonight's. Leaves `run.first_predictions`: what `estimator.predict`
    answers in this process, so that `export` knows whether another process repeats it bit for bit.
    """
    session_config = accelerators.claim(recipe.training.accelerator)
    tonight = Measure.of(recipe, run, session_config)
    with (
        explained(run.model_dir, run, recipe.data),
        tempfile.TemporaryDirectory(prefix="slipway-evaluate-") as name,
    ):
        scratch = Path(name)
        metrics = tonight.metrics(checkpoint.prefix, examples.eval.files)
        apart = Measure.of(recipe, run, session_config, scratch)
        parts = slices.split(recipe, examples.eval.files, scratch / "slices")
        by_slice = tuple(slices.measure(apart, checkpoint.prefix, parts))
        builders = {"tonight's Estimator": lambda: apart}
        if recipe_of_served is not None:
            own = recipe_of_served
            builders["its own Estimator"] = lambda: Measure.of(own, run, session_config, scratch / "own")
        compared = parts if recipe.evaluation.by_slice.changes else []
        before = _baseline(progress, served, builders, examples, scratch, compared)
        drawn = _pictures(apart, checkpoint, examples, run)
        _predict_first(apart, answers, examples, checkpoint, run)
    return Evaluation(metrics, examples.eval.examples, slices=by_slice, baseline=before, pictures=drawn)


def _baseline(
    progress: Progress, served: tuple[int, Path] | None, builders: Mapping[str, Callable[[], Measure]],
    examples: Examples, scratch: Path, parts: Sequence[slices.Part],
) -> Baseline | None:  # fmt: skip
    if served is None:
        return None
    version, folder = served
    progress({"message": f"evaluating version {version}, which is served now"})
    return baselines.measure(version, folder, builders, examples.eval.files, scratch, parts)


def _pictures(apart: Measure, checkpoint: Checkpoint, examples: Examples, run: Run) -> tuple[Picture, ...]:
    answers = answered.answers(apart, checkpoint.prefix, examples.eval.files)
    trained = training_curves.read(run.model_dir)
    return pictures.of_evaluation(run, trained, training_curves.read(run.model_dir / "eval"), answers)


def _predict_first(
    measure: Measure, answers: AnswersConfig, examples: Examples, checkpoint: Checkpoint, run: Run
) -> None:
    folder = run.first_predictions
    try:
        _, predicted = predictions.predict_samples(
            measure.estimator,
            checkpoint.prefix,
            answers,
            examples,
            measure.recipe.data,
            measure.preprocess,
            folder,
        )
        predictions.write(folder, predicted)
    except Exception as error:  # a model that cannot be exported: `export` explains that better
        print(f"the sample examples were not predicted: {type(error).__name__}: {error}")
        return
    device = "gpu" if tf.config.get_visible_devices("GPU") else "cpu"
    limits.write(folder, Limits(conditions=numerics.conditions(device)))
