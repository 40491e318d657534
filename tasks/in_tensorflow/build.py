"""Program `build`: the model's three graphs (train, eval, serve), built without data and thrown away."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import tensorflow as tf

from configs.loading.model_checks import near
from configs.schema.pipeline import (
    DataConfig,
    EvaluationConfig,
    ExportConfig,
    ModelConfig,
    TrainingConfig,
)
from tasks.core.artifacts import BuiltModel, Run
from tasks.core.errors import ConfigError, ModelError, SlipwayError
from tasks.estimators import assembly
from tasks.estimators.canned_estimators import seen_in_training
from tasks.evaluations import given_metrics
from tasks.examples.preprocessing import preprocess_of
from tasks.examples.tf_examples import Preprocess, examples_spec, parsing_spec, split_labels
from tasks.exports import given_models
from tasks.exports.serving_inputs import receiver_for

_MODES = tf.estimator.ModeKeys


def run(
    _progress: Callable[[Mapping[str, Any]], None],
    model: ModelConfig, training: TrainingConfig, evaluation: EvaluationConfig, data: DataConfig,
    export: ExportConfig, run: Run,
) -> BuiltModel:  # fmt: skip
    """Build the Estimator and its graphs; leave nothing on disk.

    Raises ModelError if one cannot be built or no signature could be served, and ConfigError if a gate is
    about a metric that the model does not report.
    """
    if model.saved_model is not None:
        return _given(model, evaluation, data, run)
    preprocess = preprocess_of(model, run)
    with tempfile.TemporaryDirectory(prefix="slipway-build-") as folder:
        run = replace(run, folder=Path(folder))  # an Estimator of a Keras model writes into its model_dir
        estimator = assembly.build(model, training, data, run)
        with _graph("training", run):
            seen, batch_size = seen_in_training(model, data), training.batch_size
            estimator.model_fn(*_parsed(seen, preprocess, batch_size), _MODES.TRAIN, estimator.config)
            variables = len(tf.compat.v1.trainable_variables())
        with _graph("evaluation", run):
            built = estimator.model_fn(*_parsed(data, preprocess, None), _MODES.EVAL, estimator.config)
            metrics = sorted({*(built.eval_metric_ops or {}), "loss", "global_step"})
        _require_metrics(_metrics_of(evaluation, training), metrics)
        with _graph("serving", run):
            receiver = receiver_for(export, data.features, run, preprocess)()
            built = estimator.model_fn(receiver.features, None, _MODES.PREDICT, estimator.config)
            signatures = tuple(_signatures(receiver, built))
    if not signatures:
        message = "no signature of the model could be served"
        raise ModelError(
            message, "raw receivers need a PredictOutput among export_outputs; parsing ones take any"
        )
    return BuiltModel(variables, tuple(metrics), signatures)


def _given(model: ModelConfig, evaluation: EvaluationConfig, data: DataConfig, run: Run) -> BuiltModel:
    """Load the SavedModel that was trained elsewhere. Raises ModelError, ConfigError."""
    saved_model = given_models.source(model, run)
    signatures = given_models.signatures(saved_model, data)
    metrics = given_metrics.names(model, data, signatures)
    _require_metrics(_metrics_of(evaluation, TrainingConfig()), metrics)
    try:
        with given_models.loaded(saved_model, signatures, None):
            pass
    except (tf.errors.OpError, OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{saved_model} does not load: {error}", "a server could not load it either"
        ) from error
    variables = len(given_models.variables(saved_model))
    return BuiltModel(variables, tuple(metrics), tuple(each.name for each in signatures))


@contextmanager
def _graph(purpose: str, run: Run) -> Iterator[None]:
    """Make a graph current for the block; name the graph, and the user's line, if the block fails."""
    with tf.Graph().as_default():
        tf.compat.v1.train.create_global_step()
        try:
            yield
        except SlipwayError:
            raise
        except Exception as error:
            lines = [
                f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
                if Path(frame.filename).is_relative_to(run.source)
            ]  # fmt: skip
            place = f" ({lines[-1]})" if lines else ""
            message = f"the graph for {purpose} cannot be built: {type(error).__name__}: {error}{place}"
            raise ModelError(message, "nothing was read or trained yet") from error


def _parsed(data: DataConfig, preprocess: Preprocess | None, batch_size: int | None) -> Any:
    """Return features and labels as an input_fn does, of examples that nobody feeds."""
    serialized = tf.compat.v1.placeholder(tf.string, [batch_size])
    return split_labels(tf.io.parse_example(serialized, parsing_spec(examples_spec(data))), data, preprocess)


def _metrics_of(evaluation: EvaluationConfig, training: TrainingConfig) -> Iterator[tuple[str, str]]:
    """Yield the keys that name a metric, and the metric."""
    by_slice = evaluation.by_slice
    for key, named in (
        ("evaluation.thresholds", evaluation.thresholds), ("evaluation.changes", evaluation.changes),
        ("evaluation.by_slice.thresholds", by_slice.thresholds),
        ("evaluation.by_slice.changes", by_slice.changes),
    ):  # fmt: skip
        yield from ((key, name) for name in named)
    if training.best_checkpoint is not None:
        yield "training.best_checkpoint.metric", training.best_checkpoint.metric


def _require_metrics(named: Iterable[tuple[str, str]], known: list[str]) -> None:
    for key, name in named:
        if name not in known:
            raise ConfigError(f"{key}: the model reports no metric {name!r}", near(name, known))


def _signatures(receiver: Any, built: Any) -> Iterator[str]:
    """Yield the outputs that can be served: Classify and Regress take serialized tf.Examples only."""
    outputs = built.export_outputs or {
        "serving_default": tf.estimator.export.PredictOutput(built.predictions)
    }
    for tensors in (receiver.receiver_tensors, *(receiver.receiver_tensors_alternatives or {}).values()):
        for name, output in outputs.items():
            try:
                output.as_signature_def(tensors)
            except ValueError:
                continue
            yield name
