"""Stage 2: the Estimator, trained in a process of its own."""

from __future__ import annotations

from prefect import get_run_logger

from configs.schema import DataConfig, EvaluationConfig, ModelConfig, TrainingConfig
from tasks import gpu_slots, model_servers, model_status, model_versions, tensorflow_process
from tasks.artifacts import Checkpoint, Examples, Run
from tasks.stages import report, stage


@stage("train", run_name="train {run.pipeline} to step {training.max_steps}", resumable=True)
def train(
    model: ModelConfig, training: TrainingConfig, evaluation: EvaluationConfig, data: DataConfig,
    checkpoint: str | int, examples: Examples, run: Run,
) -> Checkpoint:  # fmt: skip
    """Train up to `training.max_steps` in all: tried again, it goes on from the newest whole checkpoint.

    Returns the one that `checkpoint` (`export.checkpoint`) means: it is evaluated and exported.
    Interrupted, it saves one first. Raises ModelError, EnvironmentFault (no GPU, disk full), ProcessDied
    or, after `training.stall_timeout_seconds` without a step, ProcessStalled.
    """
    with gpu_slots.held(training.accelerator):
        return tensorflow_process.run(
            "train", Checkpoint, log=run.log("train"), on_progress=report,
            stall_timeout_seconds=training.stall_timeout_seconds,
            arguments={
                "model": model, "training": _with_served_version(training, run), "evaluation": evaluation,
                "data": data, "checkpoint": checkpoint, "examples": examples, "run": run,
            },
        )  # fmt: skip


def _with_served_version(training: TrainingConfig, run: Run) -> TrainingConfig:
    """Return `training` with the folder of the version now served in place of `serving`.

    Where no server runs it is the highest version on disk: the one that the next server would load.
    Where there is none either, without a warm start.
    """
    warm_start = training.warm_start
    if warm_start is None or warm_start.from_ != "serving":
        return training
    record = model_servers.running(run.pipeline)
    live = model_status.live_version(record.rest, run.pipeline) if record else None
    present = model_versions.versions(run.model_base_path)
    folder = present.get(live or max(present, default=0))
    if folder is None:
        get_run_logger().info("no warm start: no version of %s is served yet", run.pipeline)
        return training.model_copy(update={"warm_start": None})
    source = warm_start.model_copy(update={"from_": str(folder)})
    return training.model_copy(update={"warm_start": source})
