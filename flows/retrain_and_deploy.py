"""The whole chain, every night, from tonight's examples to a served and smoke-tested version.

python -m flows.retrain_and_deploy configs/digits
"""

from __future__ import annotations

from typing import Any

import flows.environment  # noqa: F401  (first: it sets what Prefect reads when it is imported)

# isort: split
from prefect import flow
from prefect.client.schemas.objects import State

from configs.loading.overrides import NOTHING, Overrides, given
from flows.policy import (
    canary,
    deploying,
    evaluate,
    export,
    ingest,
    run_name,
    train,
    undone_on_failure,
    validate,
)
from flows.recorded_runs import recorded_run
from tasks.data_checking import check_data
from tasks.deployment import deploy
from tasks.preflight import preflight
from tasks.publishing import publish
from tasks.recovery import recover
from tasks.retention import retire
from tasks.smoke_testing import smoke_test


@flow(name="retrain-and-deploy", flow_run_name=run_name)
def retrain_and_deploy(
    pipeline: str,
    overrides: Overrides = NOTHING,
    run_id: str | None = None,
    resume: str | None = None,
    dry_run: bool = False,
    force: bool = False,
) -> State[Any]:
    """Train tonight's model and, if every gate passes, serve it. The state is named after the outcome.

    Deployed: the new version answers. Skipped: there was nothing new to train on. Rejected: a gate said no;
    the version before still serves. RolledBack: published, found wanting, withdrawn; the version before
    answers again. Failed: an error. The artifact
    `<pipeline>-verdict` says why, and what to do.

    Args:
        pipeline: folder that holds a pipeline.yaml, or a YAML file.
        overrides: in place of what the YAML says, for this run only; any key path of it may be added.
        run_id: name of the run's folder, which no run has yet; by default the time.
        resume: id of a run that did not come to its end, or `newest`: it goes on, and no new one begins.
        dry_run: read the configuration and look at ports, folder, engine and image; train and change nothing.
        force: go on although gates of `evaluation` are missed. Nothing else is passed over: validation and
            smoke test compare the model with itself.
    """
    with recorded_run(pipeline, given(overrides, force=force), run_id, resume) as this:
        config, run = this.config, this.run
        recover(config.deployment, config.smoke_test, run, dry_run)
        target = preflight(config.deployment, config.server, config.recipe, config.export, run)
        this.ends_here(dry_run)
        examples = ingest(config.data, run)
        this.ends_if_needless(check_data(config.data.gates, examples, run))
        checkpoint = train(config.recipe, config.export.checkpoint, examples, run)
        evaluated = evaluate(config.recipe, config.answers, examples, checkpoint, run)
        candidate = export(config.recipe, config.export, config.answers, examples, checkpoint, evaluated, run)
        validate(config.validation, config.data, candidate, run)
        canary(config.deployment, config.smoke_test, config.data, candidate, target, config.golden, run)
        with deploying(config.deployment, config.smoke_test, run):
            with undone_on_failure(config.deployment, config.smoke_test, run):
                version = publish(candidate, config.export, config.data, target, run)
                endpoint = deploy(version, target, config.deployment, config.smoke_test, run)
                smoke_test(endpoint, candidate, config.smoke_test, config.data, config.golden, run)
            retire(version, config.export, run)
    return this.state()


if __name__ == "__main__":
    from flows.command.cli import run_module

    run_module("run")
