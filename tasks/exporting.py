"""Stage 4: the checkpoint as a SavedModel beside the versions, under a name that no server loads."""

from __future__ import annotations

from configs.schema.pipeline import AnswersConfig, ExportConfig, Recipe
from tasks.core.artifacts import Candidate, Checkpoint, Evaluation, Examples, Run
from tasks.processes import tensorflow_process
from tasks.runs.stages import report, stage


@stage("export", run_name="export {run.pipeline} at step {checkpoint.global_step}", resumable=True)
def export(
    recipe: Recipe, export: ExportConfig, answers: AnswersConfig, examples: Examples, checkpoint: Checkpoint,
    evaluated: Evaluation, run: Run,
) -> Candidate:  # fmt: skip
    """Export to `<base>/.candidate-<run id>/`, and write the expected answers to `run.folder / "offline"`.

    When it fails, no candidate is left. Raises ModelError, or EnvironmentFault if the disk is full or the
    folder not writable.
    """
    return tensorflow_process.run(
        "export", Candidate, log=run.log("export"), on_progress=report,
        arguments={
            "model": recipe.model, "training": recipe.training, "data": recipe.data, "export": export,
            "examples": examples, "checkpoint": checkpoint, "answers": answers, "run": run,
            "metrics": evaluated.metrics,
        },
    )  # fmt: skip
