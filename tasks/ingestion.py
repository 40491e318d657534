"""Stage 1: tonight's data as tf.Examples, parsed once with the feature spec and split by hash."""

from __future__ import annotations

from configs.schema.pipeline import DataConfig
from tasks.core.artifacts import Examples, Run
from tasks.processes import tensorflow_process
from tasks.runs import secret_values
from tasks.runs.stages import report, stage


@stage("ingest", run_name="ingest the examples of {run.pipeline}", resumable=True)
def ingest(data: DataConfig, run: Run) -> Examples:
    """Write checked TFRecords of each split, and statistics.json, to `run.folder / "examples"`.

    Raises DataError with the file, record and feature; then nothing is left there. EnvironmentFault where
    a secret cannot be had.
    """
    return tensorflow_process.run(
        "ingest",
        Examples,
        log=run.log("ingest"),
        on_progress=report,
        arguments={"data": data, "run": run},
        secrets=secret_values.resolved(data.secrets),
    )
