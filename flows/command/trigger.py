"""`slipway trigger`: have a worker run a deployment now, as CI does, and end with the run's own verdict."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from configs.loading.errors import ConfigError, SlipwayError
from configs.loading.pipelines import load_pipeline
from flows.command.deploy_nightly_command import deployment_name
from flows.command.display import print_error, print_verdict
from flows.command.prefect_api import connected

# isort: split
import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.utilities.urls import url_for

from flows.command.reports import Reports
from flows.command.watched_runs import WatchedRun
from tasks.core.artifacts import Verdict
from tasks.core.errors import AlreadyRunning
from tasks.reports.verdicts import exit_code
from tasks.runs import reported_verdicts
from tasks.runs.run_records import RunRecord

console = Console(highlight=False)


@dataclass(frozen=True)
class Watching:
    """How a triggered run is watched."""

    reports: Reports
    cancel_on_signal: bool
    start_timeout_seconds: float


def trigger(pipeline: str, overrides: Mapping[str, Any], watching: Watching | None) -> int:
    """Hand a run of the deployment to its work pool; where it is watched, return what its verdict means.

    Raises ConfigError where no server, no such deployment or wrong parameters are named, NotTaken where
    no worker takes it, StoppedWatching at a signal.
    """
    try:
        with connected() as client:
            run = _submitted(_deployment(client, pipeline), overrides)
            return _watched(client, run, watching) if watching else 0
    except SlipwayError as error:
        if watching is not None:
            watching.reports.write(RunRecord(pipeline, error=error).verdict())
        raise


def _deployment(client: SyncPrefectClient, pipeline: str) -> DeploymentResponse:
    name = _name(pipeline)
    if name.count("/") == 1:
        try:
            return client.read_deployment_by_name(name)
        except ObjectNotFound:
            raise ConfigError(f"there is no deployment {name}", _known(client)) from None
    wanted = DeploymentFilter(name=DeploymentFilterName(any_=[name]))
    found = client.read_deployments(deployment_filter=wanted)
    if len(found) != 1:
        many = f"there are {len(found)} deployments named {name}, of several flows"
        said = many if found else f"{pipeline}: there is no deployment {name}"
        raise ConfigError(said, _known(client))
    return found[0]


def _name(pipeline: str) -> str:
    """Return the deployment's name: of a pipeline that is there, of one by that name, or as it is given."""
    if os.path.exists(pipeline):  # noqa: PTH110 (a text with a null byte is no path, and no error)
        return deployment_name(load_pipeline(Path(pipeline)).config.name)
    return pipeline if "/" in pipeline else deployment_name(pipeline)


def _known(client: SyncPrefectClient) -> str:
    flows = {flow.id: flow.name for flow in client.read_flows()}
    known = sorted(f"{flows.get(each.flow_id)}/{each.name}" for each in client.read_deployments())
    return f"there are: {', '.join(known)}" if known else "prefect --no-prompt deploy --all makes those"


def _submitted(deployment: DeploymentResponse, overrides: Mapping[str, Any]) -> FlowRun:
    own = deployment.parameters.get("overrides") or {}
    parameters = {"overrides": {**own, **overrides}} if overrides else {}
    try:
        run: Any = run_deployment(deployment.id, parameters=parameters, timeout=0, as_subflow=False)
    except PrefectHTTPStatusError as error:
        if error.response.status_code not in (httpx.codes.CONFLICT, httpx.codes.UNPROCESSABLE_ENTITY):
            raise
        problem = error.response.json().get("detail", error.response.text)
        raise ConfigError(f"{deployment.name}: Prefect refuses the parameters: {problem}") from None
    console.print(f"flow run {run.name} ({run.id}) of {deployment.name}", markup=False, soft_wrap=True)
    if url := url_for(run):
        console.print(f"  {url}", markup=False, soft_wrap=True)
    return cast(FlowRun, run)


def _watched(client: SyncPrefectClient, run: FlowRun, watching: Watching) -> int:
    followed = WatchedRun(client, run.id, console, watching.cancel_on_signal)
    state = followed.until_its_end(watching.start_timeout_seconds)
    verdict = reported_verdicts.told(client, run.id) or _untold(client, run, state)
    print_verdict(console, verdict)
    if verdict.error is not None:
        print_error(console, verdict.error)
    watching.reports.write(verdict)
    return exit_code(verdict)


def _untold(client: SyncPrefectClient, run: FlowRun, state: State[Any]) -> Verdict:
    """Return the verdict of a run that ended without one: killed, cancelled early, or of another flow."""
    name, type_ = state.name or "", state.type.value
    message = f"the flow run ended as {name}" + (f": {state.message}" if state.message else "")
    error = {"class": type_.title(), "message": message, "hint": "its log in the Prefect UI says more"}
    if state.is_cancelled() and (others := _under_way(client, run)):
        error = {
            "class": AlreadyRunning.__name__,
            "message": f"another run of this deployment is under way: {', '.join(others)}",
            "hint": "wait for it to end, or cancel it; then trigger again",
        }
    outcome = "trained" if state.is_completed() else "cancelled" if state.is_cancelled() else "failed"
    return Verdict(
        _pipeline_of(run), str(run.id), outcome, None, None, None, (), (), {},
        None if state.is_completed() else error,
    )  # fmt: skip


def _under_way(client: SyncPrefectClient, run: FlowRun) -> list[str]:
    """Return the deployment's other runs that are under way: name, and page in the UI."""
    types = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
    found = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[run.deployment_id] if run.deployment_id else []),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types)),
        )
    )
    return [f"{each.name} ({url_for(each) or each.id})" for each in found if each.id != run.id]


def _pipeline_of(run: FlowRun) -> str:
    """Return the pipeline's name: by its YAML if it is here, else the name of its folder."""
    path = str(run.parameters.get("pipeline", run.name))
    try:
        return load_pipeline(path).config.name
    except ConfigError:
        return Path(path).name
