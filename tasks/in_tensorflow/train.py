"""Program of the stage `train`: the Estimator, trained up to `max_steps` on the train split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tensorflow as tf

from configs.schema.pipeline import DataConfig, EvaluationConfig, ModelConfig, TrainingConfig
from tasks.clusters.cluster import RemoteCluster
from tasks.clusters.cluster_training import Chief
from tasks.core.artifacts import Checkpoint, Examples, Run
from tasks.core.errors import ModelError
from tasks.estimators import (
    accelerators,
    assembly,
    checkpoint_choice,
    checkpoints,
    model_dir_lock,
    strategies,
    warm_start,
)
from tasks.estimators.best_checkpoints import KeepBest
from tasks.estimators.canned_estimators import seen_in_training
from tasks.estimators.training_hooks import (
    ReportEvaluation,
    ReportProgress,
    StopOnSigterm,
    WarnOfRandomOps,
)
from tasks.examples.preprocessing import preprocess_of
from tasks.examples.tensorflow_errors import explained
from tasks.examples.tf_examples import Position, batches, training_batches
from tasks.exports import given_models

EXIT_CODE_OF_SIGTERM = 143


def run(  # noqa: PLR0913, PLR0917 (called by name: the recipe's parts, and where it runs)
    progress: Callable[[Mapping[str, Any]], None],
    model: ModelConfig, training: TrainingConfig, data: DataConfig, examples: Examples, run: Run,
    evaluation: EvaluationConfig | None = None, checkpoint: str | int = "latest",
    joined: RemoteCluster | None = None,
) -> Checkpoint:  # fmt: skip
    """Train from the newest whole checkpoint in `run.model_dir`, if there is one, and leave a new one.

    Waits for an earlier trainer that still writes to it, then kills it (`model_dir_lock`). Returns the one
    that `checkpoint` (`export.checkpoint`) means. `joined` is the cluster across machines whose chief
    this is (`tasks/clusters`). On SIGTERM the checkpoint of the step
    then reached is saved, and the process exits with 143. Raises EnvironmentFault or ModelError before
    anything is on disk when there is no such accelerator or the Estimator cannot be built.
    """
    if model.saved_model is not None:
        return given_models.take(model, run)
    evaluation = evaluation or EvaluationConfig()
    tell = _teller(progress)
    with model_dir_lock.held(run, tell, lambda line: progress({"message": line})):
        if training.deterministic:
            tf.config.experimental.enable_op_determinism()
        chief = Chief(training, {
            "model": model, "training": training, "data": data, "examples": examples, "run": run,
            "evaluation": evaluation,
        }, run, joined)  # fmt: skip
        session_config = chief.filtered(accelerators.claim(training.accelerator))
        strategy = strategies.build(training)
        estimator = assembly.build(model, training, data, run, session_config, strategy)
        reporter, stopper = ReportProgress(progress, training), StopOnSigterm()
        first_step = checkpoints.settle(run.model_dir, tell)
        start = _position(training, examples, first_step)
        train_input = _train_input(
            model, strategies.per_replica(training, strategy), data, examples, run, start
        )
        eval_input = _eval_input(model, evaluation, data, examples, run)
        evaluate = _evaluator(estimator, eval_input, training, progress)
        warned = [WarnOfRandomOps(tell)] if training.deterministic else []
        with stopper.listening(), explained(run.model_dir, run, data):
            chief.train(
                estimator, train_input, eval_input,
                hooks=[*warm_start.hooks(training, run, first_step, tell), *warned, reporter, stopper],
                listeners=_listeners(training, run, first_step or 0, evaluate, stopper),
                is_stopped=stopper.is_asked,
            )  # fmt: skip
        newest = _newest(run.model_dir, reporter)
        if stopper.asked and newest.global_step < training.max_steps:
            raise SystemExit(EXIT_CODE_OF_SIGTERM)
        return _chosen(checkpoint, newest, run)


def _train_input(
    model: ModelConfig, training: TrainingConfig, data: DataConfig, examples: Examples, run: Run,
    start: Position | None,
) -> Callable[[], Any]:  # fmt: skip
    seen, preprocess = seen_in_training(model, data), preprocess_of(model, run)
    return lambda: training_batches(examples.train.files, seen, training, preprocess, start)


def _eval_input(
    model: ModelConfig, evaluation: EvaluationConfig, data: DataConfig, examples: Examples, run: Run
) -> Callable[[], Any]:
    preprocess = preprocess_of(model, run)
    return lambda: batches(examples.eval.files, data, evaluation.batch_size, preprocess)


def _evaluator(
    estimator: Any, eval_input: Callable[[], Any], training: TrainingConfig,
    progress: Callable[[Mapping[str, Any]], None],
) -> Callable[[Path], dict[str, Any]]:  # fmt: skip
    """Return what evaluates a checkpoint on the eval split while training goes on."""

    def evaluate(prefix: Path) -> dict[str, Any]:
        told = ReportEvaluation(progress, checkpoints.step_of(prefix), training.max_steps)
        return dict(estimator.evaluate(eval_input, checkpoint_path=str(prefix), hooks=[told]))

    return evaluate


def _listeners(
    training: TrainingConfig, run: Run, first_step: int,
    evaluate: Callable[[Path], dict[str, Any]], stopper: StopOnSigterm,
) -> list[Any]:  # fmt: skip
    """Return what is to be done whenever a checkpoint was saved."""
    best = training.best_checkpoint
    return [KeepBest(best, run.model_dir, first_step, evaluate, stopper.is_asked)] if best else []


def _teller(progress: Callable[[Mapping[str, Any]], None]) -> Callable[[str], None]:
    """Return what tells a line to the stage's log, to whoever watches, and to the run's log."""

    def tell(line: str) -> None:
        print(line, flush=True)
        progress({"message": line, "logged": True})

    return tell


def _position(training: TrainingConfig, examples: Examples, first_step: int | None) -> Position | None:
    """Return where input begins; None where its order may differ from run to run."""
    if not training.deterministic:
        return None
    return Position((first_step or 0) * training.batch_size, examples.train.examples)


def _newest(model_dir: Path, reporter: ReportProgress) -> Checkpoint:
    prefix = tf.train.latest_checkpoint(str(model_dir))
    if prefix is None:
        raise ModelError(
            f"training left no checkpoint in {model_dir}", "does its model_fn return a train_op?"
        )
    step = checkpoints.step_of(Path(prefix))
    first_step = step if reporter.loss is None else reporter.first_step
    return Checkpoint(Path(prefix), step, reporter.loss, reporter.steps_per_second(), first_step)


def _chosen(wanted: str | int, newest: Checkpoint, run: Run) -> Checkpoint:
    """Return the checkpoint to evaluate and export, with all that is to be known of it."""
    prefix, reason = checkpoint_choice.choose(wanted, run.model_dir, run.source, newest.prefix)
    damaged = ", ".join(checkpoints.set_aside(run.model_dir))
    notes = (reason, warm_start.summary(run.model_dir), f"set aside as damaged: {damaged}" if damaged else "")
    step = newest.global_step if prefix == newest.prefix else checkpoints.step_of(prefix)
    return replace(newest, prefix=prefix, global_step=step, notes=tuple(filter(None, notes)))
