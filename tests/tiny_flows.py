"""A program for test_prefect: flows without TensorFlow, run against the Prefect server of PREFECT_API_URL.

python tests/tiny_flows.py PIPELINE prints, as JSON, how often each task was tried, and what the Prefect
API says of each flow run afterwards.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import flows.environment  # noqa: F401  (first: it sets what Prefect reads when it is imported)

# isort: split
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import State

from flows import policy
from flows.recorded_runs import recorded_run
from tasks.core.artifacts import Check, DataReview, Endpoint, ModelVersion, Withdrawal
from tasks.core.errors import AlreadyRunning, ModelError, ProcessDied, Rejected, SmokeTestFailed
from tasks.processes import tensorflow_process
from tasks.runs.stages import stage

CHECK = Check("accuracy", "accuracy >= 0.9", 0.5, 0.9, False)


@stage("publish", run_name="publish")
def publish() -> ModelVersion:
    """Publish nothing."""
    return ModelVersion(8, Path("/models/8"), previous=7)


@stage("deploy", run_name="deploy")
def deploy() -> Endpoint:
    """Deploy nothing."""
    return Endpoint("small", 8, "127.0.0.1:1", "http://127.0.0.1:2", "process", "process 3", True)


@stage("fail", run_name="fail")
def fail(error: BaseException) -> None:
    """Fail as told."""
    raise error


@stage("withdraw", run_name="withdraw")
def withdraw() -> Withdrawal:
    """Withdraw nothing."""
    return Withdrawal(8, serving=7)


@flow(flow_run_name=policy.run_name)
def deployed(pipeline: str) -> State[Any]:
    """Come to a good end."""
    with recorded_run(pipeline, None, "deployed") as this:
        publish()
        deploy()
    return this.state()


@flow(flow_run_name=policy.run_name)
def trained(pipeline: str) -> State[Any]:
    """Publish nothing, and end well."""
    with recorded_run(pipeline, None, "trained") as this:
        pass
    return this.state()


@flow(flow_run_name=policy.run_name)
def checked(pipeline: str) -> State[Any]:
    """Be a dry run: nothing after its end is run."""
    with recorded_run(pipeline, None, "checked") as this:
        this.ends_here(dry_run=True)
        publish()
    return this.state()


@flow(flow_run_name=policy.run_name)
def skipped(pipeline: str) -> State[Any]:
    """Have nothing new to train on: nothing after that is run."""
    with recorded_run(pipeline, None, "skipped") as this:
        this.ends_if_needless(DataReview((), "the same examples"))
        publish()
    return this.state()


@flow(flow_run_name=policy.run_name)
def rejected(pipeline: str) -> State[Any]:
    """Be stopped by a gate."""
    with recorded_run(pipeline, None, "rejected") as this:
        fail(Rejected("accuracy is 0.5", "train more", (CHECK,)))
    return this.state()


@flow(flow_run_name=policy.run_name)
def rolled_back(pipeline: str) -> State[Any]:
    """Publish, fail and withdraw."""
    with recorded_run(pipeline, None, "rolled-back") as this:
        publish()
        withdraw()
        fail(SmokeTestFailed("too slow"))
    return this.state()


@flow(flow_run_name=policy.run_name)
def broken(pipeline: str) -> State[Any]:
    """Have a defect."""
    with recorded_run(pipeline, None, "broken") as this:
        raise ZeroDivisionError("a defect")
    return this.state()


@flow(flow_run_name=policy.run_name)
def nested(pipeline: str) -> State[Any]:
    """Start a second run of the pipeline while the first holds its lock."""
    with recorded_run(pipeline, None, "outer") as this:
        try:
            with recorded_run(pipeline, None, "inner"):
                pass
        except AlreadyRunning as error:
            raise Rejected(error.message) from None
    return this.state()


TRIES: list[str] = []


@task(retries=2, retry_condition_fn=policy.may_succeed_again)
def work(error: Exception) -> None:
    """Always fail."""
    TRIES.append(type(error).__name__)
    raise error


@flow
def working() -> None:
    """Try tasks, under the flows' policy, whose errors are of different halves of the tree."""
    for error in (ProcessDied("killed"), ModelError("no"), Rejected("no"), ValueError("odd")):
        work(error, return_state=True)


def _told(pipeline: str) -> dict[str, Any]:
    told = {}
    with get_client(sync_client=True) as client:
        for each in (deployed, trained, checked, skipped, rejected, rolled_back, broken, nested):
            state = each(pipeline, return_state=True)
            run = client.read_flow_run(state.state_details.flow_run_id)
            ours = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
            artifacts = client.read_artifacts(artifact_filter=ours)
            told[each.fn.__name__] = {
                "run_name": run.name,
                "name": run.state.name,
                "type": run.state.type.value,
                "message": run.state.message,
                "tags": run.tags,
                "artifacts": [(made.key, made.description, made.data) for made in artifacts if made.key],
            }
    return told


if __name__ == "__main__":
    tensorflow_process.prepare = lambda: None  # nothing here needs it
    working()
    sys.stdout.write("\n" + json.dumps({"tries": TRIES, "runs": _told(sys.argv[1])}) + "\n")
