"""tf.distribute strategies from the YAML, and how a batch is shared among their replicas."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from configs.schema.pipeline import TrainingConfig
from tasks.core.errors import ModelError


def build(training: TrainingConfig) -> Any:
    """Return the strategy for tf.estimator.RunConfig(train_distribute=…); None for `none`.

    Devices must have been claimed before: mirrored uses all GPUs that are visible, or else all logical CPUs.
    """
    if training.strategy == "mirrored":
        return tf.distribute.MirroredStrategy(_devices())
    if training.strategy == "parameter_server":
        # The one of TF 2 has a coordinator of its own, and takes no Estimator.
        return tf.compat.v1.distribute.experimental.ParameterServerStrategy()
    if training.strategy == "multi_worker_mirrored":
        return tf.distribute.MultiWorkerMirroredStrategy()
    return None


def _in_step(strategy: Any) -> int:
    if isinstance(strategy, tf.compat.v1.distribute.experimental.ParameterServerStrategy):
        return len(strategy.extended.worker_devices)
    return int(strategy.num_replicas_in_sync) if strategy is not None else 1


def _devices() -> list[str]:
    kind = "GPU" if tf.config.get_visible_devices("GPU") else "CPU"
    return [f"/{kind}:{number}" for number in range(len(tf.config.list_logical_devices(kind)))]


def per_replica(training: TrainingConfig, strategy: Any) -> TrainingConfig:
    """Return `training` with the batch size of one replica: what an Estimator's input_fn must give.

    `training.batch_size` is what all replicas see together in a step; where workers do not wait for each
    other (parameter servers), a step is one worker's. Raises ModelError where it cannot be divided.
    """
    replicas = _in_step(strategy)
    if training.batch_size % replicas:
        raise ModelError(
            f"training.batch_size = {training.batch_size} cannot be divided among {replicas} replicas "
            f"(training.strategy = {training.strategy})",
            f"it counts the examples of all replicas together: make it a multiple of {replicas}",
        )
    return training.model_copy(update={"batch_size": training.batch_size // replicas})
