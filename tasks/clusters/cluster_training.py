"""What the processes of a cluster do: tf.estimator.train_and_evaluate, each its part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from configs.schema.pipeline import TrainingConfig
from tasks.clusters.cluster import RemoteCluster, RemoteRoles, Roles, Task
from tasks.core.artifacts import Run

_SECONDS_BETWEEN_EVALUATIONS = 5
Input = Callable[[], Any]


class Chief:
    """Trains an Estimator: by itself, or as the chief of `training.cluster`."""

    def __init__(
        self, training: TrainingConfig, arguments: Mapping[str, Any], run: Run,
        joined: RemoteCluster | None = None,
    ) -> None:  # fmt: skip
        """Start the other processes of the cluster, where there is one; none outlives this process.

        Where a cluster across machines is `joined`, they are there already.
        To be made before strategies and RunConfigs, which read what it leaves in TF_CONFIG.
        """
        self._training = training
        self._roles: Roles | RemoteRoles | None = None
        if joined is not None:
            self._roles = RemoteRoles(joined)
        elif training.cluster is not None:
            self._roles = Roles(training, arguments, run)

    def filtered(self, session_config: Any) -> Any:
        """Return `session_config`, with which no session waits for a worker that is gone."""
        return filtered(session_config, self._roles.chief) if self._roles else session_config

    def train(
        self, estimator: Any, batches: Input, eval_batches: Input, hooks: Sequence[Any],
        listeners: Sequence[Any], is_stopped: Callable[[], bool],
    ) -> None:  # fmt: skip
        """Train up to max_steps; afterwards no other process of the cluster lives.

        Where `is_stopped` says that training was asked to stop, the others are not waited for.
        """
        if self._roles is None:
            estimator.train(
                batches, hooks=hooks, max_steps=self._training.max_steps, saving_listeners=listeners
            )
            return
        try:
            hooks = [*hooks, _BeginRest(self._roles)]
            train_and_evaluate(estimator, batches, eval_batches, self._training, hooks, listeners)
            if not is_stopped():
                self._roles.wait()
        finally:
            self._roles.end()


def filtered(session_config: Any, task: Task) -> Any:
    """Return `session_config` with the device filters of the task."""
    session_config.device_filters.extend(task.device_filters())
    return session_config


def train_and_evaluate(
    estimator: Any, batches: Input, eval_batches: Input, training: TrainingConfig,
    hooks: Sequence[Any] = (), listeners: Sequence[Any] = (),
) -> None:  # fmt: skip
    """Play the part that TF_CONFIG says; a parameter server's never ends."""
    tf.estimator.train_and_evaluate(
        estimator,
        tf.estimator.TrainSpec(batches, training.max_steps, hooks, saving_listeners=listeners),
        tf.estimator.EvalSpec(
            eval_batches, steps=None, start_delay_secs=0, throttle_secs=_SECONDS_BETWEEN_EVALUATIONS
        ),
    )


def own_order(training: TrainingConfig, task: Task) -> TrainingConfig:
    """Return `training` with a seed of the worker's own: each draws its batches from all examples."""
    return training.model_copy(update={"seed": training.seed + task.index + 1})


class _BeginRest(tf.estimator.SessionRunHook):  # type: ignore[misc]
    """Lets the workers begin once the chief has made the variables."""

    def __init__(self, roles: Roles | RemoteRoles) -> None:
        self._roles = roles

    def after_create_session(self, _session: Any, _coord: Any) -> None:
        self._roles.begin()
