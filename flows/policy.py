"""What is done again, how often, and what is undone: the policy that the flows share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import TaskRun
from prefect.states import State

from configs.schema import DeploymentConfig
from tasks.artifacts import Candidate, ModelVersion, Run
from tasks.deployment import withdraw
from tasks.errors import RetryableError


def may_succeed_again(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Say whether trying again may help: only for the RetryableError half of the tree."""
    return isinstance(state.result(raise_on_failure=False), RetryableError)


TRY_AGAIN: dict[str, Any] = {
    "retries": 1,
    "retry_delay_seconds": 1,
    "retry_condition_fn": may_succeed_again,
}

TRAIN_AGAIN: dict[str, Any] = {**TRY_AGAIN, "retries": 3, "retry_delay_seconds": [1, 10, 60]}
"""A trainer that died goes on from its last checkpoint, so trying again is cheap."""


@contextmanager
def withdrawn_on_failure(
    version: ModelVersion, candidate: Candidate, deployment: DeploymentConfig, run: Run
) -> Iterator[None]:
    """Withdraw the version when the block fails or is interrupted, and see the one before it answer."""
    try:
        yield
    except BaseException:
        withdraw(version, candidate, deployment, run)
        raise
