"""The whole chain, every night, from tonight's examples to a served and smoke-tested version.

python -m flows.retrain_and_deploy configs/digits
"""

from __future__ import annotations

from typing import Any

import configs.environment  # noqa: F401  (first: it sets what Prefect reads when it is imported)

# isort: split
from prefect import flow
from prefect.client.schemas.objects import State

from flows.policy import evaluate, export, ingest, run_name, train, validate, withdrawn_on_failure
from tasks.deployment import deploy
from tasks.preflight import preflight
from tasks.publishing import publish
from tasks.recorded_runs import recorded_run
from tasks.retention import retire
from tasks.smoke_testing import smoke_test


@flow(name="retrain-and-deploy", flow_run_name=run_name)
def retrain_and_deploy(
    pipeline: str,
    overrides: dict[str, Any] | None = None,
    run_id: str | None = None,
    resume: str | None = None,
) -> State[Any]:
    """Train tonight's model and, if every gate passes, serve it. The state is named after the outcome.

    Args:
        pipeline: folder that holds a pipeline.yaml, or a YAML file.
        overrides: key path to value, in place of what the YAML says, such as {"training.max_steps": 500}.
        run_id: name of the run's folder; by default the time and a random part.
        resume: id of a run that did not come to its end, or `newest`: it goes on, and no new one begins.
    """
    with recorded_run(pipeline, overrides, run_id, resume) as this:
        config, run = this.config, this.run
        target = preflight(config.deployment, config.server, run)
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
        version = publish(candidate, config.export, target.live_version, run)
        with withdrawn_on_failure(version, candidate, config.deployment, config.data, run):
            endpoint = deploy(version, target, config.deployment, config.server, run)
            smoke_test(endpoint, candidate, config.smoke_test, config.data, run)
        retire(version, config.export, run)
    return this.state()


if __name__ == "__main__":
    from flows.cli import run_module

    run_module("run")
