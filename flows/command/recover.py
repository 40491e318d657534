"""`slipway recover`: runs that were killed go on, their deploys are settled, and Prefect is told.

To be called when a machine comes up, or by hand; again and again it changes nothing.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from rich.console import Console

import flows.environment  # noqa: F401  (first: it sets what Prefect reads when it is imported)

# isort: split
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
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
from tasks.deploys import unfinished_deploys
from tasks.reports import run_report
from tasks.runs import interrupted_runs, run_folders
from tasks.runs.interrupted_runs import InterruptedRun

console = Console(highlight=False)


def recover(pipeline: str | None) -> int:
    """Resume every killed run of the pipeline, or of all pipelines; return the worst exit code.

    A run of a deployment is handed to its work pool, any other is run here and now. Nobody else's run
    is touched: whether a run was killed is told by its lock, not by Prefect. Where none was killed, a deploy
    may be unfinished all the same, and the server on record gone.
    """
    loaded = load_pipeline(pipeline) if pipeline else None
    killed = interrupted_runs.found(loaded.config.name if loaded else None)
    codes = [_recovered(each) for each in killed]
    others = {loaded.config.name: loaded} if loaded else unfinished_deploys.left()
    for each in killed:
        others.pop(each.pipeline, None)
    settled = [_settled(name, each) for name, each in others.items()]
    codes += [code for code in settled if code is not None]
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
        recovery = unfinished_deploys.recover(pipeline)
    except AlreadyRunning:
        return None  # it is somebody's, at this moment
    except SlipwayError as error:
        console.print(f"{name}: its deploy is not settled: {error.message}", markup=False, soft_wrap=True)
        return error.exit_code
    if not recovery.found:
        return None
    console.print(f"{name}: {recovery.proved()}", markup=False, soft_wrap=True)
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
        recovery = unfinished_deploys.recover(loaded)
    except SlipwayError as error:
        console.print(f"  its deploy is not settled: {error.message}", markup=False, soft_wrap=True)
        return
    if recovery.found:
        console.print(f"  {recovery.proved()}", markup=False, soft_wrap=True)
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
        run: Any = run_deployment(
            deployment,
            parameters=_to_go_on(killed, flow_run),
            idempotency_key=f"recover-{flow_run.id}",
            timeout=0,
            as_subflow=False,
        )
    console.print(f"  it goes on as flow run {run.name} ({run.id})", markup=False)
    return 0
