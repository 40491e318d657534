"""Train and prove tonight's model without publishing it: the candidate is left for a person to look at.

python -m flows.retrain configs/digits
"""

from __future__ import annotations

from typing import Any

import configs.environment  # noqa: F401  (first: it sets what Prefect reads when it is imported)

# isort: split
from prefect import flow
from prefect.client.schemas.objects import State

from flows.policy import evaluate, export, ingest, run_name, train, validate
from tasks.recorded_runs import recorded_run


@flow(name="retrain", flow_run_name=run_name)
def retrain(
    pipeline: str,
    overrides: dict[str, Any] | None = None,
    run_id: str | None = None,
    resume: str | None = None,
) -> State[Any]:
    """Leave a validated candidate beside the versions, under a name that no server loads.

    Args:
        pipeline: folder that holds a pipeline.yaml, or a YAML file.
        overrides: key path to value, in place of what the YAML says, such as {"training.max_steps": 500}.
        run_id: name of the run's folder; by default the time and a random part.
        resume: id of a run that did not come to its end, or `newest`: it goes on, and no new one begins.
    """
    with recorded_run(pipeline, overrides, run_id, resume) as this:
        config, run = this.config, this.run
        examples = ingest(config.data, run)
        checkpoint = train(
            config.model,
            config.training,
            config.evaluation,
            config.data,
            config.export.checkpoint,
            examples,
            run,
        )
        evaluated = evaluate(
            config.model, config.training, config.evaluation, config.data, examples, checkpoint, run
        )
        candidate = export(
            config.model,
            config.training,
            config.export,
            config.data,
            examples,
            checkpoint,
            evaluated,
            config.samples,
            run,
        )
        validate(config.validation, config.data, candidate, run)
    return this.state()


if __name__ == "__main__":
    from flows.cli import run_module

    run_module("retrain")
