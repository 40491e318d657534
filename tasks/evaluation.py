"""Stage 3: metrics on examples that training never saw, and the gate that they must pass."""

from __future__ import annotations

from dataclasses import replace

from configs.schema import DataConfig, EvaluationConfig, ModelConfig, TrainingConfig
from tasks import gpu_slots, tensorflow_process, thresholds
from tasks.artifacts import Checkpoint, Evaluation, Examples, Run
from tasks.stages import report, stage


@stage("evaluate", run_name="evaluate {run.pipeline} at step {checkpoint.global_step}", resumable=True)
def evaluate(
    model: ModelConfig, training: TrainingConfig, evaluation: EvaluationConfig, data: DataConfig,
    examples: Examples, checkpoint: Checkpoint, run: Run,
) -> Evaluation:  # fmt: skip
    """Return the metrics on the whole eval split, with a check for each threshold.

    Raises Rejected, with all checks, when one is missed; ModelError when there is no such metric.
    """
    with gpu_slots.held(training.accelerator):
        measured = tensorflow_process.run(
            "evaluate", Evaluation, log=run.log("evaluate"), on_progress=report,
            arguments={
                "model": model, "training": training, "evaluation": evaluation, "data": data,
                "examples": examples, "checkpoint": checkpoint, "run": run,
            },
        )  # fmt: skip
    checks = thresholds.check(measured.metrics, evaluation.thresholds)
    thresholds.refuse_failed(checks)
    return replace(measured, checks=checks)
