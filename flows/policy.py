"""The policy that the flows share: what is tried again, how often, and what is undone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run

from configs.loading.errors import ConfigError
from configs.loading.pipelines import load_pipeline
from configs.schema.pipeline import DeploymentConfig, SmokeTestConfig
from tasks import canary as canarying
from tasks import evaluation, exporting, ingestion, training, validation
from tasks.core.artifacts import Run
from tasks.core.errors import RetryableError
from tasks.deployment import abandon
from tasks.deploys.interrupted_deploys import settle
from tasks.state import deploy_journal


def run_name() -> str:
    """Name a flow run as a person looks for it: the pipeline, and when it began.

    Alerts take the pipeline's name from it (flows/command/alerts.py).
    """
    return f"{_pipeline_name()} {datetime.now():%Y-%m-%d %H:%M}"  # local time, as the UI shows it


def rollback_name() -> str:
    """Name a flow run that rolls back: what it does first."""
    return f"roll back {run_name()}"


def _pipeline_name() -> str:
    pipeline = str(flow_run.parameters["pipeline"])
    try:
        return load_pipeline(pipeline).config.name
    except ConfigError:  # the run ends in it too
        return Path(pipeline).stem


def may_succeed_again(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Return whether a retry may help: only for RetryableError and its subclasses."""
    return isinstance(state.result(raise_on_failure=False), RetryableError)


_ONCE_MORE: dict[str, Any] = {
    "retries": 1,
    "retry_delay_seconds": 1,
    "retry_condition_fn": may_succeed_again,
}
# A trainer that died goes on from its last checkpoint, so that trying again is cheap.
_AND_AGAIN: dict[str, Any] = {**_ONCE_MORE, "retries": 4, "retry_delay_seconds": [1, 2, 5, 60]}

ingest = ingestion.ingest.with_options(**_ONCE_MORE)
train = training.train.with_options(**_AND_AGAIN)
evaluate = evaluation.evaluate.with_options(**_ONCE_MORE)
export = exporting.export.with_options(**_ONCE_MORE)
validate = validation.validate.with_options(**_ONCE_MORE)
canary = canarying.canary.with_options(**_ONCE_MORE)


@contextmanager
def deploying(deployment: DeploymentConfig, smoke_test: SmokeTestConfig, run: Run) -> Iterator[None]:
    """Hold the deploy lock, with no deploy unfinished: rollbacks and `slipway stop` wait, or are refused."""
    with deploy_journal.held(run.pipeline, deployment.load_timeout_seconds):
        settle(deployment, smoke_test, run)
        yield


@contextmanager
def undone_on_failure(deployment: DeploymentConfig, smoke_test: SmokeTestConfig, run: Run) -> Iterator[None]:
    """Undo the deploy when the block fails or is interrupted, and see the version before answer.

    A block that is killed leaves its journal: the next run, or `slipway recover`, finishes or undoes it.
    """
    try:
        yield
    except BaseException as error:
        abandon(error, deployment, smoke_test, run)
        raise
