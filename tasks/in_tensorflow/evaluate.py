"""Program of the stage `evaluate`: metrics of one checkpoint on the eval split, and what explains them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from configs.schema.pipeline import AnswersConfig, Recipe
from tasks.answers import limits, numerics
from tasks.answers.limits import Limits
from tasks.core.artifacts import Baseline, Checkpoint, Evaluation, Examples, Picture, Run, SliceMetrics
from tasks.estimators import accelerators
from tasks.evaluations import answered, baselines, given_metrics, slices, training_curves
from tasks.evaluations.measuring import Measure
from tasks.examples.tensorflow_errors import explained
from tasks.exports import given_models, predictions
from tasks.reports import pictures

Progress = Callable[[Mapping[str, Any]], None]
_BY_ITS_ANSWERS = "evaluated on the same examples, by its own answers"


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
    if recipe.model.saved_model is not None:
        return _given(recipe, answers, examples, run, served, session_config)
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
    trained = training_curves.to_the_end(trained, checkpoint.global_step, checkpoint.loss)
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


def _given(
    recipe: Recipe, answers: AnswersConfig, examples: Examples, run: Run, served: tuple[int, Path] | None,
    session_config: Any,
) -> Evaluation:  # fmt: skip
    """Do the same for a SavedModel that was trained elsewhere."""
    saved_model = given_models.copied(run)
    with tempfile.TemporaryDirectory(prefix="slipway-evaluate-") as scratch:
        parts = slices.split(recipe, examples.eval.files, Path(scratch) / "slices")
        predicted = given_metrics.predict(saved_model, recipe, examples.eval.files, session_config)
        by_slice = _given_slices(saved_model, recipe, parts, session_config)
        before = None
        if served is not None:
            compared = parts if recipe.evaluation.by_slice.changes else []
            before = _given_baseline(served, recipe, examples, compared, session_config)
    drawn = pictures.of_evaluation(run, {}, {}, [each for one in predicted if (each := one.answered())])
    signatures = given_models.signatures(saved_model, recipe.data)
    first = run.first_predictions
    _, answered_first = given_models.predict_samples(
        saved_model, signatures, answers, examples, recipe.data, first, session_config
    )
    predictions.write(first, answered_first)
    limits.write(first, Limits(conditions=numerics.conditions()))
    metrics = given_metrics.measure(predicted)
    return Evaluation(metrics, examples.eval.examples, slices=by_slice, baseline=before, pictures=drawn)


def _given_slices(
    saved_model: Path, recipe: Recipe, parts: Sequence[slices.Part], session_config: Any
) -> tuple[SliceMetrics, ...]:
    return tuple(
        SliceMetrics(
            part.feature, part.value, part.examples,
            given_metrics.measure(given_metrics.predict(saved_model, recipe, [part.file], session_config)),
        )
        for part in parts
    )  # fmt: skip


def _given_baseline(
    served: tuple[int, Path],
    recipe: Recipe,
    examples: Examples,
    parts: Sequence[slices.Part],
    session_config: Any,
) -> Baseline:
    """Measure the served version by its own answers; a note says why it could not be."""
    version, folder = served
    try:
        found = given_metrics.predict(folder, recipe, examples.eval.files, session_config)
        by_slice = _given_slices(folder, recipe, parts, session_config)
    except Exception as error:
        return Baseline(version, {}, f"not measured: {error}")
    return Baseline(version, given_metrics.measure(found), _BY_ITS_ANSWERS, by_slice)
