"""Stage 2: the Estimator, trained in a process of its own."""

from __future__ import annotations

from configs.schema import DataConfig, ModelConfig, TrainingConfig
from tasks import tensorflow_process
from tasks.artifacts import Checkpoint, Examples, Run
from tasks.stages import report, stage


@stage("train", run_name="train {run.pipeline} to step {training.max_steps}")
def train(
    model: ModelConfig, training: TrainingConfig, data: DataConfig, examples: Examples, run: Run
) -> Checkpoint:
    """Train up to `training.max_steps` in all: tried again, it goes on from the newest checkpoint.

    Interrupted, it saves a checkpoint first. Raises ModelError, EnvironmentFault (no GPU, disk full) or
    ProcessDied.
    """
    return tensorflow_process.run(
        "train", Checkpoint, log=run.log("train"), on_progress=report,
        arguments={"model": model, "training": training, "data": data, "examples": examples, "run": run},
    )  # fmt: skip
