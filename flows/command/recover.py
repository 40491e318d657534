"""`slipway recover`: runs that were killed go on, their deploys are settled, and Prefect is told.

To be called when a machine comes up, or by hand; again and again it changes nothing.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

from rich.console import Console

import flows.environment  # noqa: F401  (first: it sets what Prefect reads when it is imported)

# isort: split
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Crashed

from configs.loading.errors import SlipwayError
from configs.loading.pipelines import Pipeline, load_pipeline
from flows.command import terminal
from flows.command.prefect_api import connected
from flows.command.reports import Reports
from tasks.core.errors import AlreadyRunning
from tasks.deploys import interrupted_deploys
from tasks.reports import run_report
from tasks.runs import interrupted_runs, run_folders
from tasks.runs.interrupted_runs import InterruptedRun

console = Console(highlight=False)
_TRAINING_FLOWS = ("retrain-and-deploy", "retrain")
_FLOWS = (*_TRAINING_FLOWS, "roll-back")


def recover(pipeline: str | None, start_timeout_seconds: float = 900.0) -> int:
    """Resume every killed run of the pipeline, or of all pipelines; return the worst exit code.

    A run of a deployment is handed to its work pool, any other is run here and now. Nobody else's run
    is touched: whether a run was killed is told by its lock, not by Prefect. Where none was killed, a deploy
    may be unfinished all the same, and the server on record gone. A flow run of any pipeline whose process
    was killed before it took that lock is started again, `start_timeout_seconds` after a worker took it.
    """
    loaded = load_pipeline(pipeline) if pipeline else None
    killed = interrupted_runs.found(loaded.config.name if loaded else None)
    codes = [_recovered(each) for each in killed]
    others = {loaded.config.name: loaded} if loaded else interrupted_deploys.left()
    for each in killed:
        others.pop(each.pipeline, None)
    settled = [_settled(name, each) for name, each in others.items()]
    codes += [code for code in settled if code is not None]
    codes += _start_again(start_timeout_seconds) if pipeline is None else []
    if not codes:
        console.print("no run was killed: nothing to recover")
    return max(codes, default=0)


def _settled(name: str, pipeline: Pipeline | SlipwayError) -> int | None:
    """Finish or undo what no killed run left; return the exit code, None if there is nothing to do.

    A pipeline whose configuration cannot be read is reported, and does not keep the others from it.
    """
    if isinstance(pipeline, SlipwayError):
        console.print(f"{name}: not recovered: {pipeline.message}", markup=False, soft_wrap=True)
        return pipeline.exit_code
    try:
        recovery = interrupted_deploys.recover(pipeline)
    except AlreadyRunning:
        return None  # it is somebody's, at this moment
    except SlipwayError as error:
        console.print(f"{name}: its deploy is not settled: {error.message}", markup=False, soft_wrap=True)
        return error.exit_code
    if not recovery.found:
        return None
    console.print(f"{name}: {recovery.summary()}", markup=False, soft_wrap=True)
    return 0


def _recovered(killed: InterruptedRun) -> int:
    console.print(f"{killed.pipeline}: run {killed.run_id} was killed", markup=False)
    _settle_deploy(killed)
    flow_run = _told_prefect(killed)
    if not killed.began:
        interrupted_runs.forget(killed)
        console.print("  it had not begun: there is nothing to go on with")
        return 0
    if flow_run is not None and flow_run.deployment_id is not None:
        return _handed_over(killed, flow_run, flow_run.deployment_id)
    flow = (killed.flow or "retrain-and-deploy").replace("-", "_")
    return terminal.run_flow(flow, str(killed.file), {}, Reports(), verbose=False, resume=killed.run_id)


def _settle_deploy(killed: InterruptedRun) -> None:
    """Finish or undo the deploy that it was killed in, now: it may be long until the run goes on."""
    try:
        loaded = load_pipeline(killed.file)
        recovery = interrupted_deploys.recover(loaded)
    except SlipwayError as error:
        console.print(f"  its deploy is not settled: {error.message}", markup=False, soft_wrap=True)
        return
    if recovery.found:
        console.print(f"  {recovery.summary()}", markup=False, soft_wrap=True)
    if killed.began and (page := run_report.write(loaded, run_folders.describe(loaded, killed.run_id))):
        console.print(f"  its report: {page}", markup=False, soft_wrap=True)


def _told_prefect(killed: InterruptedRun) -> FlowRun | None:
    """Mark the flow run as crashed, which frees its slot, and return it; None if there is none."""
    if killed.flow_run is None or get_current_settings().api.url is None:
        return None
    try:
        with connected() as client:
            return _marked(client, UUID(killed.flow_run))
    except SlipwayError as error:
        console.print(f"  Prefect is not told: {error.message}", markup=False, soft_wrap=True)
        return None


def _marked(client: SyncPrefectClient, flow_run: UUID) -> FlowRun | None:
    try:
        run = client.read_flow_run(flow_run)
    except ObjectNotFound:
        return None  # of another server, or forgotten there
    if run.state is not None and not run.state.is_final():
        message = "its process is gone, found by slipway recover"
        client.set_flow_run_state(flow_run, Crashed(message=message), force=True)
        console.print(f"  flow run {run.name} was {run.state.name}: marked as Crashed", markup=False)
    return run


def _to_go_on(killed: InterruptedRun, flow_run: FlowRun) -> dict[str, Any]:
    """Return the flow's parameters; what was overridden is in the run's own configuration."""
    fresh = {"overrides": {}, "force": False, "dry_run": False}
    told = {**flow_run.parameters, **{name: fresh[name] for name in fresh if name in flow_run.parameters}}
    return {**told, "resume": killed.run_id}


def _handed_over(killed: InterruptedRun, flow_run: FlowRun, deployment: UUID) -> int:
    """Create the flow run that resumes the run on a worker of the deployment. Idempotent."""
    with connected():
        _submit(flow_run, deployment, _to_go_on(killed, flow_run))
    return 0


def _submit(flow_run: FlowRun, deployment: UUID, parameters: dict[str, Any]) -> None:
    run: Any = run_deployment(
        deployment,
        parameters=parameters,
        idempotency_key=f"recover-{flow_run.id}",
        timeout=0,
        as_subflow=False,
    )
    console.print(f"  it goes on as flow run {run.name} ({run.id})", markup=False)


def _start_again(timeout_seconds: float) -> list[int]:
    """Mark flow runs that never began as crashed, and start those that train again; return exit codes.

    Their worker was killed, and their process with it, before the pipeline's lock was taken: no file knows
    them, and Prefect shows them as pending or running for ever.
    """
    if get_current_settings().api.url is None:
        return []
    try:
        with connected() as client:
            return [_started_again(client, each) for each in _never_begun(client, timeout_seconds)]
    except SlipwayError as error:
        problem = f"flow runs that never began: not looked for: {error.message}"
        console.print(problem, markup=False, soft_wrap=True)
        return []


def _never_begun(client: SyncPrefectClient, timeout_seconds: float) -> list[FlowRun]:
    """Return flow runs, the oldest first, that a worker took so long ago and that no run has tagged since."""
    kinds = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING])
    taken = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=list(_FLOWS))),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=kinds)),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
    )
    begun = run_folders.known_flow_runs()
    latest = datetime.now(timezone.utc) - timedelta(seconds=timeout_seconds)
    return [
        each for each in taken
        if each.deployment_id is not None and each.state is not None and each.state.timestamp < latest
        and str(each.id) not in begun and not _has_begun(client, each, each.deployment_id)
    ]  # fmt: skip


def _has_begun(client: SyncPrefectClient, flow_run: FlowRun, deployment: UUID) -> bool:
    """Return whether the flow run has a tag that its deployment has not: runs add its pipeline's name."""
    try:
        return not set(flow_run.tags) <= set(client.read_deployment(deployment).tags)
    except ObjectNotFound:
        return True  # not one of ours any more


def _started_again(client: SyncPrefectClient, flow_run: FlowRun) -> int:
    assert flow_run.state is not None and flow_run.deployment_id is not None
    message = "its process was killed before the run began, found by slipway recover"
    client.set_flow_run_state(flow_run.id, Crashed(message=message), force=True)
    console.print(
        f"flow run {flow_run.name} was {flow_run.state.name} but never began: marked as Crashed",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    if client.read_flow(flow_run.flow_id).name in _TRAINING_FLOWS:
        _submit(flow_run, flow_run.deployment_id, flow_run.parameters)
    return 0
