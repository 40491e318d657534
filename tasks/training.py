"""Stage 2: the Estimator, trained in a child process that the evaluation goes on with where it can."""

from __future__ import annotations

from prefect import get_run_logger

from configs.schema.pipeline import Recipe, TrainingConfig
from tasks.clusters import role_runs
from tasks.core.artifacts import Checkpoint, Examples, Run
from tasks.estimators import gpu_slots
from tasks.processes import tensorflow_process
from tasks.runs.stages import report, stage
from tasks.servers import served_versions


@stage("train", run_name="train {run.pipeline} to step {recipe.training.max_steps}", resumable=True)
def train(recipe: Recipe, checkpoint: str | int, examples: Examples, run: Run) -> Checkpoint:
    """Train up to `training.max_steps` in all: tried again, it goes on from the newest whole checkpoint.

    Returns the one that `checkpoint` (`export.checkpoint`) means: it is evaluated and exported.
    Interrupted, it saves one first. Raises ModelError, EnvironmentFault (no GPU, disk full), ProcessDied
    or, after `training.stall_timeout_seconds` without a step, ProcessStalled.
    """
    training = _with_served_version(recipe.training, run)
    arguments = {
        "model": recipe.model, "training": training, "evaluation": recipe.evaluation,
        "data": recipe.data, "examples": examples, "run": run,
    }  # fmt: skip
    with gpu_slots.held(training.accelerator), role_runs.joined(training, arguments, run) as joined:
        return tensorflow_process.run(
            "train", Checkpoint, log=run.log("train"), on_progress=report,
            stall_timeout_seconds=training.stall_timeout_seconds,
            arguments={**arguments, "checkpoint": checkpoint, "joined": joined},
        )  # fmt: skip


def _with_served_version(training: TrainingConfig, run: Run) -> TrainingConfig:
    """Return `training` with the folder of the version now served in place of `serving`.

    Where no server runs it is the highest version on disk: the one that the next server would load.
    Where there is none either, without a warm start.
    """
    warm_start = training.warm_start
    if warm_start is None or warm_start.from_ != "serving":
        return training
    found = served_versions.served(run)
    if found is None:
        get_run_logger().info("no warm start: no version of %s is served yet", run.pipeline)
        return training.model_copy(update={"warm_start": None})
    source = warm_start.model_copy(update={"from_": str(found[1])})
    return training.model_copy(update={"warm_start": source})
