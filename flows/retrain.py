"""Train and prove tonight's model without publishing it: the candidate is left for a person to look at.

python -m flows.retrain configs/digits
"""

from __future__ import annotations

from typing import Any

import flows.environment  # noqa: F401  (first: it sets what Prefect reads when it is imported)

# isort: split
from prefect import flow
from prefect.client.schemas.objects import State

from configs.loading.overrides import NOTHING, Overrides, given
from flows.policy import evaluate, export, ingest, run_name, train, validate
from flows.recorded_runs import recorded_run
from tasks.data_checking import check_data


@flow(name="retrain", flow_run_name=run_name)
def retrain(
    pipeline: str,
    overrides: Overrides = NOTHING,
    run_id: str | None = None,
    resume: str | None = None,
    dry_run: bool = False,
    force: bool = False,
) -> State[Any]:
    """Train and validate a candidate without publishing it.

    Args:
        pipeline: folder that holds a pipeline.yaml, or a YAML file.
        overrides: in place of what the YAML says, for this run only; any key path of it may be added.
        run_id: name of the run's folder, which no run has yet; by default the time.
        resume: id of a run that did not come to its end, or `newest`: it goes on, and no new one begins.
        dry_run: read the configuration and make sure that no other run is under way; train nothing.
        force: go on although gates of `evaluation` are missed. Nothing else is passed over: validation and
            smoke test compare the model with itself.
    """
    with recorded_run(pipeline, given(overrides, force=force), run_id, resume) as this:
        config, run = this.config, this.run
        this.ends_here(dry_run)
        examples = ingest(config.data, run)
        this.ends_if_needless(check_data(config.data.gates, examples, run))
        checkpoint = train(config.recipe, config.export.checkpoint, examples, run)
        evaluated = evaluate(config.recipe, config.answers, examples, checkpoint, run)
        candidate = export(config.recipe, config.export, config.answers, examples, checkpoint, evaluated, run)
        validate(config.validation, config.data, candidate, run)
    return this.state()


if __name__ == "__main__":
    from flows.command.cli import run_module

    run_module("retrain")
