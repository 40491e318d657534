"""Train and prove tonight's model without publishing it: the candidate is left for a person to look at.

python -m flows.retrain configs/digits
"""

from __future__ import annotations

from typing import Any

import configs.environment  # noqa: F401  (first: it sets what Prefect reads when it is imported)

# isort: split
from prefect import flow
from prefect.states import State

from flows.policy import TRAIN_AGAIN, TRY_AGAIN
from tasks.evaluation import evaluate
from tasks.exporting import export
from tasks.ingestion import ingest
from tasks.recorded_runs import recorded_run
from tasks.training import train
from tasks.validation import validate


@flow(name="retrain", flow_run_name="{pipeline}")
def retrain(pipeline: str, overrides: dict[str, Any] | None = None, run_id: str | None = None) -> State[Any]:
    """Leave a validated candidate beside the versions, under a name that no server loads.

    Args:
        pipeline: folder that holds a pipeline.yaml, or a YAML file.
        overrides: key path to value, in place of what the YAML says, such as {"training.max_steps": 500}.
        run_id: name of the run's folder; by default the time and a random part.
    """
    with recorded_run(pipeline, overrides, run_id) as this:
        config, run = this.config, this.run
        examples = ingest.with_options(**TRY_AGAIN)(config.data, run)
        checkpoint = train.with_options(**TRAIN_AGAIN)(
            config.model, config.training, config.data, examples, run
        )
        evaluate.with_options(**TRY_AGAIN)(config, examples, checkpoint, run)
        candidate = export.with_options(**TRY_AGAIN)(config, examples, checkpoint, run)
        validate.with_options(**TRY_AGAIN)(config.validation, config.data, candidate, run)
    return this.state()


if __name__ == "__main__":
    from flows.cli import run_module

    run_module("retrain")
