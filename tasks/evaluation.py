"""Stage 3: metrics on examples that training never saw, and the gate that they must pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from configs.loading.errors import ConfigError
from configs.loading.pipelines import load_pipeline
from configs.schema.home import runs_folder
from configs.schema.pipeline import AnswersConfig, Recipe
from tasks.core.artifacts import Checkpoint, Evaluation, Examples, Run
from tasks.core.errors import Rejected
from tasks.estimators import gpu_slots
from tasks.evaluations import thresholds
from tasks.processes import tensorflow_process
from tasks.reports import evaluation_page, prefect_artifacts
from tasks.runs.stages import report, stage
from tasks.servers import served_versions
from tasks.state import model_versions


@stage("evaluate", run_name="evaluate {run.pipeline} at step {checkpoint.global_step}", resumable=True)
def evaluate(
    recipe: Recipe, answers: AnswersConfig, examples: Examples, checkpoint: Checkpoint, run: Run
) -> Evaluation:
    """Metrics of the checkpoint on the whole eval split, beside those of the version now served.

    Returns them with a check for each threshold and each change, by slice too, and pictures. Raises
    Rejected, with all checks, when one is missed and `evaluation.gate` is enforced; ModelError when there
    is no such metric.
    """
    served = served_versions.served(run) if recipe.evaluation.baseline == "served" else None
    with gpu_slots.held(recipe.training.accelerator):
        measured = tensorflow_process.run(
            "evaluate", Evaluation, log=run.log("evaluate"), on_progress=report,
            arguments={
                "recipe": recipe, "answers": answers, "examples": examples, "checkpoint": checkpoint,
                "run": run,
                "served": served, "recipe_of_served": _made_of(served, recipe, run),
            },
        )  # fmt: skip
    checks = thresholds.of_evaluation(measured, recipe.evaluation)
    evaluated = replace(measured, checks=checks)
    prefect_artifacts.show(f"{run.pipeline}-evaluation", evaluation_page.as_markdown(evaluated, run))
    try:
        thresholds.apply(checks, recipe.evaluation)
    except Rejected as error:
        error.evaluated = evaluated
        raise
    return evaluated


def _made_of(served: tuple[int, Path] | None, tonight: Recipe, run: Run) -> Recipe | None:
    """Return the recipe of the run that published the version; None where it is tonight's, or is gone."""
    run_id = model_versions.run_id_of(served[1]) if served else None
    if run_id is None:
        return None
    try:
        own = load_pipeline(runs_folder(run.pipeline) / run_id / "config.yaml").config.recipe
    except ConfigError:  # that run's folder was removed, or another release wrote it
        return None
    same = (own.model, own.data) == (tonight.model, tonight.data)
    return None if same else own
