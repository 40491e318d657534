"""Flow runs of `cluster-role`, on a work pool of Prefect: made, asked for, and put in a state."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Pending

from tasks.core.errors import EnvironmentFault, ProcessDied, SlipwayError, error_named

FLOW = "cluster-role"
_CHECKOUT = Path(__file__).resolve().parents[2]
_log = logging.getLogger(__name__)


def deploy(pool: str) -> None:
    """Make the deployment that runs processes of clusters on `pool`, or bring it up to date.

    Raises EnvironmentFault where Prefect has no such pool.
    """
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(pool)
        except ObjectNotFound:
            known = ", ".join(sorted(each.name for each in client.read_work_pools())) or "none"
            raise EnvironmentFault(
                f"training.cluster.work_pool: Prefect has no work pool {pool!r}; it has: {known}",
                f"make it: prefect work-pool create {pool} --type process",
            ) from None
        client.create_deployment(
            flow_id=client.create_flow_from_name(FLOW),
            name=pool,
            work_pool_name=pool,
            entrypoint="flows/cluster_role.py:cluster_role",
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(_CHECKOUT)}}],
            parameter_openapi_schema={"type": "object", "properties": {}},
            enforce_parameter_schema=False,
            description="A process of a cluster that trains; made by Slipway (training.cluster.work_pool).",
        )


def submit(pool: str, name: str, **parameters: str) -> str:
    """Make a flow run that any worker of `pool` takes; return its id."""
    flow_run = run_deployment(f"{FLOW}/{pool}", parameters=parameters, flow_run_name=name, timeout=0)
    assert isinstance(flow_run, FlowRun)  # this is no coroutine
    return str(flow_run.id)


def states(flow_runs: Sequence[str], seen: Mapping[str, State[Any]]) -> Mapping[str, State[Any]]:
    """Return the state of each flow run; that of `seen` while Prefect's server does not answer."""
    asked = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(each) for each in flow_runs]))
    try:
        with get_client(sync_client=True) as client:
            found = client.read_flow_runs(flow_run_filter=asked)
    except httpx.HTTPError as error:  # training does not need it
        _log.warning("Prefect's server does not say how the cluster is: %s", error)
        return {each: seen.get(each, Pending()) for each in flow_runs}
    told = {str(run.id): run.state for run in found if run.state is not None}
    return {each: told.get(each, Cancelled(message="its flow run was deleted")) for each in flow_runs}


def put(flow_run: str, state: State[Any]) -> None:
    """Put a flow run in a state, whatever its own is."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run, state, force=True)


def problem(state: State[Any]) -> SlipwayError:
    """Return what a flow run died of: its state is named by our error, where it was one of ours."""
    kind = error_named(state.name or "")
    message = (state.message or "").strip() or f"its flow run is {state.name}"
    return ProcessDied(message) if kind is SlipwayError else kind(message)
