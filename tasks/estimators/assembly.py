"""The Estimator that a pipeline describes, on the run's model_dir."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from configs.schema.pipeline import DataConfig, ModelConfig, TrainingConfig
from tasks.core.artifacts import Run
from tasks.core.errors import ModelError
from tasks.core.references import resolve
from tasks.estimators import canned_estimators, graph_pipelines
from tasks.examples.preprocessing import preprocess_of, seen_by_model


def build(
    model: ModelConfig,
    training: TrainingConfig,
    data: DataConfig,
    run: Run,
    session_config: Any = None,
    strategy: Any = None,
) -> Any:
    """Return the tf.estimator.Estimator; nothing is on disk yet. Raises ModelError.

    `strategy` is a tf.distribute.Strategy to train by, where there is one.
    """
    config = run_config(training, run, session_config, strategy)
    if model.graph is not None:
        return graph_pipelines.estimator(graph_pipelines.graph_of(model, run), config)
    if model.factory is None:
        seen = seen_by_model(data.features, preprocess_of(model, run))
        return canned_estimators.build(model, seen, run.source, config)
    return _from_factory(model, run, config)


def run_config(training: TrainingConfig, run: Run, session_config: Any = None, strategy: Any = None) -> Any:
    """Return the tf.estimator.RunConfig: where, how often to save and to log, and the seed."""
    steps = training.checkpoint_steps
    clock = (
        {"save_checkpoints_steps": steps}
        if steps
        else {"save_checkpoints_secs": training.save_checkpoints_secs}
    )
    return tf.estimator.RunConfig(
        model_dir=str(run.model_dir),
        tf_random_seed=training.seed,
        save_summary_steps=training.log_every_steps,
        log_step_count_steps=training.log_every_steps,
        keep_checkpoint_max=training.keep_checkpoint_max,
        keep_checkpoint_every_n_hours=training.keep_checkpoint_every_n_hours,
        session_config=session_config,
        train_distribute=strategy,
        experimental_max_worker_delay_secs=0,  # of a cluster's: the default is 5 s for each
        **clock,
    )


def _from_factory(model: ModelConfig, run: Run, config: Any) -> Any:
    reference = str(model.factory)
    factory = resolve(reference, run.source, "model.factory", ModelError)
    place = f"model.factory = {reference!r}"
    try:
        estimator = factory(dict(model.params), config)
    except Exception as error:
        message = f"{place} failed: {type(error).__name__}: {error}"
        raise ModelError(
            message, "it is called with (params: dict, config: tf.estimator.RunConfig)"
        ) from error
    if not isinstance(estimator, tf.compat.v1.estimator.Estimator):  # the base of TF2's as well
        message = f"{place}: expected it to return a tf.estimator.Estimator, found {type(estimator).__name__}"
        raise ModelError(message, "end it with: return tf.estimator.Estimator(model_fn, config=config, …)")
    if estimator.model_dir != config.model_dir:
        message = f"{place}: the Estimator's model_dir is {estimator.model_dir}, expected {config.model_dir}"
        raise ModelError(message, "pass `config` on to the Estimator, and no model_dir")
    return estimator
