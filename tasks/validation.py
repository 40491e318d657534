"""Stage 5: the candidate, loaded in a fresh process and asked in every signature."""

from __future__ import annotations

from configs.schema.pipeline import DataConfig, ValidationConfig
from tasks.core.artifacts import Candidate, Run, Validation
from tasks.processes import tensorflow_process
from tasks.runs.stages import report, stage


@stage("validate", run_name="validate the candidate of {run.pipeline}", resumable=True)
def validate(validation: ValidationConfig, data: DataConfig, candidate: Candidate, run: Run) -> Validation:
    """Prove that every signature answers in every batch size as `estimator.predict` did.

    Raises Rejected, with a check for each signature and batch size, when an output is not finite, not
    of the stated dtype and shape, or not equal; the candidate stays where it is. What `validation.inputs`
    give is saved in `run.folder / "outputs"`.
    """
    return tensorflow_process.run(
        "validate", Validation, log=run.log("validate"), on_progress=report,
        arguments={"validation": validation, "data": data, "candidate": candidate, "run": run},
    )  # fmt: skip
