"""*Retry* in the Prefect UI: the same flow run again, which goes on with its run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pipelines import written
from slipway_command import REPOSITORY, user_environment

PROGRAM = """
import json, pathlib, sys
import flows.environment
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.states import AwaitingRetry
from tasks.processes import tensorflow_process
from tasks.core.artifacts import DataReview
from tasks.core.errors import EnvironmentFault, Rejected
from flows.recorded_runs import recorded_run
from tasks.runs.stages import stage

CALLS = []
FAILURES = [EnvironmentFault("the disk is full"), None]

@stage("first", run_name="first", resumable=True)
def first() -> DataReview:
    CALLS.append("first")
    return DataReview(())

@stage("second", run_name="second", resumable=True)
def second() -> DataReview:
    CALLS.append("second")
    if error := FAILURES.pop(0):
        raise error
    return DataReview(())

@flow
def night(pipeline: str, overrides: dict = {}):
    with recorded_run(pipeline, overrides, None) as this:
        first()
        second()
    return this.state()

def tried(client, run):
    client.set_flow_run_state(run.id, AwaitingRetry(), force=True)
    run_flow(night, flow_run=client.read_flow_run(run.id), return_type="state")

tensorflow_process.prepare = lambda: None
parameters = {"pipeline": sys.argv[1], "overrides": {"training.seed": 7}}
with get_client(sync_client=True) as client:
    run = client.create_flow_run(night, parameters=parameters)
    tried(client, run)
    tried(client, run)
    retried = CALLS[:]
    FAILURES[:] = [Rejected("no"), None]
    other = client.create_flow_run(night, parameters=parameters)
    tried(client, other)
    tried(client, other)
    runs = sorted(pathlib.Path(sys.argv[2]).glob("runs/small/*/verdict.json"))
    verdicts = [json.loads(file.read_text()) for file in runs]
    print(json.dumps({"calls": retried, "all": CALLS, "outcomes": [each["outcome"] for each in verdicts],
                      "first": verdicts[0], "seed": "seed: 7" in (runs[0].parent / "config.yaml").read_text(),
                      "state": client.read_flow_run(run.id).state.name}))
"""


@pytest.fixture(scope="module")
def told(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that fails and is retried; then one that is rejected and retried."""
    folder = tmp_path_factory.mktemp("retry")
    (folder / "program.py").write_text(PROGRAM)
    pipeline: Path = written(folder / "small", {}).folder
    home = folder / "home"
    done = subprocess.run(
        [sys.executable, str(folder / "program.py"), str(pipeline), str(home)], cwd=REPOSITORY, timeout=180,
        env={**user_environment(home), "PREFECT_API_URL": prefect_api, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_failed_run_goes_on_in_its_folder(told: dict[str, Any]) -> None:
    """Finished stages are not repeated; the parameters of the flow run are those of the run."""
    assert told["calls"] == ["first", "second", "second"]
    assert told["first"]["outcome"] == "trained"
    proved = [stage["summary"] for stage in told["first"]["stages"]]
    assert proved[0].startswith("from before: ") and not proved[1].startswith("from before: ")
    assert told["seed"] and told["state"] == "Trained"


def test_a_rejected_run_has_ended(told: dict[str, Any]) -> None:
    """Retried, it is a new run: the same stages would be rejected again."""
    assert told["all"][3:] == ["first", "second", "first", "second"]
    assert told["outcomes"] == ["trained", "rejected", "trained"]
