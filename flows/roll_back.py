"""An earlier version serves again, without training: for a button in the UI, or an automation.

In a terminal `slipway rollback PIPELINE` does the same without Prefect, in seconds.
"""

from __future__ import annotations

from typing import Any

import flows.environment  # noqa: F401  (first: it sets what Prefect reads when it is imported)

# isort: split
from prefect import flow
from prefect.client.schemas.objects import State

from configs.loading.errors import SlipwayError
from configs.loading.pipelines import Pipeline, load_pipeline
from flows.policy import rollback_name
from flows.recorded_runs import report, state_of
from tasks.core.artifacts import Run, Verdict
from tasks.deployment import withdraw
from tasks.deploys import rolling_back
from tasks.processes import lost_output, tensorflow_process
from tasks.reports import prefect_artifacts
from tasks.runs import quiet_outcomes
from tasks.runs.run_records import RunRecord
from tasks.runs.stages import stage

choose = stage("choose", run_name="choose the version of {run.pipeline} to serve again")(rolling_back.choose)


@flow(name="roll-back", flow_run_name=rollback_name)
def roll_back(pipeline: str, to: int | None = None) -> State[Any]:
    """Serve an earlier version again, proven by its answers; those after it are withdrawn.

    The state is Restored, or Failed with the reason. The artifact `<pipeline>-verdict` says what serves.

    Args:
        pipeline: folder that holds a pipeline.yaml, or a YAML file.
        to: number of the version; by default the one before the live one.
    """
    quiet_outcomes.install()
    loaded = load_pipeline(pipeline)
    lost_output.survive()
    prefect_artifacts.tag(loaded.config.name)
    tensorflow_process.prepare()  # it imports TensorFlow while the server loads the version
    run = rolling_back.begun(loaded)
    try:
        verdict = _rolled_back(loaded, run, to)
    finally:
        tensorflow_process.close()
    report(verdict, loaded, run)
    return state_of(verdict, run)


def _rolled_back(loaded: Pipeline, run: Run, to: int | None) -> Verdict:
    record = RunRecord(run.pipeline, run.run_id)
    config = loaded.config
    try:
        with rolling_back.locked(loaded, run):
            chosen = choose(run, to)
            with rolling_back.recorded(loaded, run) as record:
                record.note_restored(withdraw(chosen.journal, config.deployment, config.smoke_test, run))
    except SlipwayError as error:
        record.error = error
    return record.verdict()
