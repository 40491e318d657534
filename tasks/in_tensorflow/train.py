"""Program of the stage `train`: the Estimator, trained up to `max_steps` on the train split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from configs.schema import DataConfig, ModelConfig, TrainingConfig
from tasks import accelerators, estimators
from tasks.artifacts import Checkpoint, Examples, Run
from tasks.canned_estimators import seen_in_training
from tasks.errors import ModelError
from tasks.tensorflow_errors import explained
from tasks.tf_examples import training_batches
from tasks.training_hooks import ReportProgress, StopOnSigterm

EXIT_CODE_OF_SIGTERM = 143


def run(
    progress: Callable[[Mapping[str, Any]], None],
    model: ModelConfig, training: TrainingConfig, data: DataConfig, examples: Examples, run: Run,
) -> Checkpoint:  # fmt: skip
    """Train from the newest checkpoint in `run.model_dir`, if there is one, and leave a new one.

    On SIGTERM the checkpoint of the step then reached is saved, and the process exits with 143. Raises
    EnvironmentFault or ModelError before anything is on disk when there is no such accelerator or the
    Estimator cannot be built.
    """
    session_config = accelerators.claim(training.accelerator, training.gpu_memory_growth)
    estimator = estimators.build(model, training, data, run, session_config)
    seen = seen_in_training(model, data)
    reporter, stopper = ReportProgress(progress, training), StopOnSigterm()
    with stopper.listening(), explained(writes_to=run.model_dir):
        estimator.train(
            lambda: training_batches(examples.train.files, seen, training),
            hooks=[reporter, stopper],
            max_steps=training.max_steps,
        )
    checkpoint = _newest(run.model_dir, reporter)
    if stopper.asked and checkpoint.global_step < training.max_steps:
        raise SystemExit(EXIT_CODE_OF_SIGTERM)
    return checkpoint


def _newest(model_dir: Path, reporter: ReportProgress) -> Checkpoint:
    prefix = tf.train.latest_checkpoint(str(model_dir))
    if prefix is None:
        raise ModelError(
            f"training left no checkpoint in {model_dir}", "does its model_fn return a train_op?"
        )
    step = int(tf.train.load_variable(prefix, tf.compat.v1.GraphKeys.GLOBAL_STEP))
    first_step = step if reporter.loss is None else reporter.first_step
    return Checkpoint(Path(prefix), step, reporter.loss, reporter.steps_per_second(), first_step)
