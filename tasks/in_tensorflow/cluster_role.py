"""Program of every process of `training.cluster` but the chief, which is the program `train`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any

from configs.schema.pipeline import DataConfig, EvaluationConfig, ModelConfig, TrainingConfig
from tasks.clusters import cluster_training
from tasks.clusters.cluster import Task
from tasks.core.artifacts import Examples, Run
from tasks.estimators import accelerators, assembly, strategies
from tasks.estimators.canned_estimators import seen_in_training
from tasks.examples.preprocessing import preprocess_of
from tasks.examples.tensorflow_errors import explained
from tasks.examples.tf_examples import batches, training_batches
from tasks.processes import fork_server


def run(
    _progress: Callable[[Mapping[str, Any]], None],
    model: ModelConfig, training: TrainingConfig, data: DataConfig, examples: Examples, run: Run,
    evaluation: EvaluationConfig, task: Task,
) -> None:  # fmt: skip
    """Run as a worker up to max_steps, as the evaluator of the last checkpoint, or as a parameter server.

    SIGTERM ends it at once, as it ends any process: the chief alone has something to save. The chief's end
    is SIGKILL for it: multi_worker_mirrored takes SIGTERM for a notice of preemption, and waits for others.
    """
    fork_server.end_with_parent(signal.SIGKILL)
    task.join()
    accelerator = training.accelerator if task.type == "worker" else "cpu"
    session_config = cluster_training.filtered(accelerators.claim(accelerator), task)
    strategy = None if task.type == "evaluator" else strategies.build(training)
    estimator = assembly.build(model, training, data, run, session_config, strategy)
    own = cluster_training.own_order(strategies.per_replica(training, strategy), task)
    seen, preprocess = seen_in_training(model, data), preprocess_of(model, run)
    with explained(writes_to=run.model_dir):
        cluster_training.train_and_evaluate(
            estimator,
            lambda: training_batches(examples.train.files, seen, own, preprocess),
            lambda: batches(examples.eval.files, data, evaluation.batch_size, preprocess),
            training,
        )
