"""The verdict of a triggered run that told none: cancelled beside another, cancelled, or crashed."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from pipelines import written
from slipway_command import REPOSITORY, user_environment

PROGRAM = """
import json, sys
import flows.environment
from pydantic_core import to_jsonable_python
from prefect.client.orchestration import get_client
from prefect.states import Cancelled, Crashed, Pending, Running
from flows.retrain import retrain
from flows.command import trigger
from tasks.reports.verdicts import exit_code

def verdict(run):
    run = client.read_flow_run(run.id)
    found = trigger._untold(client, run, run.state)
    return {**to_jsonable_python(found), "exit_code": exit_code(found), "flow_run": str(run.id)}

with get_client(sync_client=True) as client:
    flow = client.create_flow(retrain)
    parameters = {"pipeline": sys.argv[1]}
    deployment = client.create_deployment(
        flow, name="nightly-small", entrypoint="flows/retrain.py:retrain", parameters=parameters,
        concurrency_limit=1, concurrency_options={"collision_strategy": "CANCEL_NEW"},
    )
    make = lambda: client.create_flow_run_from_deployment(deployment)
    first, second, crashed = make(), make(), make()
    for state in (Pending(), Running()):
        client.set_flow_run_state(first.id, state)
    client.set_flow_run_state(second.id, Pending())
    beside = verdict(second)
    client.set_flow_run_state(first.id, Cancelled(message="by hand"), force=True)
    client.set_flow_run_state(crashed.id, Crashed(message="killed"), force=True)
    print(json.dumps({"beside": beside, "cancelled": verdict(first), "crashed": verdict(crashed),
                      "first": [first.name, str(first.id)]}))
"""


@pytest.fixture(scope="module")
def verdicts(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of three runs of a deployment with a concurrency limit of 1."""
    folder = tmp_path_factory.mktemp("pipelines")
    pipeline = written(folder / "some-folder", {}).folder
    environment = {**user_environment(folder / "home"), "PREFECT_API_URL": prefect_api}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(pipeline)], cwd=REPOSITORY, env=environment, timeout=120,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_beside_a_run_that_is_under_way(verdicts: dict[str, Any]) -> None:
    """The error names that run and its page; exit code 4."""
    beside, (name, id_) = verdicts["beside"], verdicts["first"]
    assert (beside["outcome"], beside["exit_code"]) == ("cancelled", 4)
    assert beside["error"]["class"] == "AlreadyRunning"
    assert f"under way: {name} (http" in beside["error"]["message"] and id_ in beside["error"]["message"]


def test_cancelled_is_not_failed(verdicts: dict[str, Any]) -> None:
    """A crash is."""
    assert (verdicts["cancelled"]["outcome"], verdicts["cancelled"]["exit_code"]) == ("cancelled", 4)
    assert verdicts["cancelled"]["error"]["message"] == "the flow run ended as Cancelled: by hand"
    assert (verdicts["crashed"]["outcome"], verdicts["crashed"]["exit_code"]) == ("failed", 1)


def test_it_carries_the_pipelines_name_and_an_id(verdicts: dict[str, Any]) -> None:
    """By the YAML, not the path; the id is the flow run's."""
    for each in ("beside", "cancelled", "crashed"):
        assert (verdicts[each]["pipeline"], verdicts[each]["run_id"]) == ("small", verdicts[each]["flow_run"])
