"""Stage 0, recover: a deploy that an earlier run did not live to end is finished or undone, first of all."""

from __future__ import annotations

from configs.schema.pipeline import DeploymentConfig, SmokeTestConfig
from tasks.core.artifacts import Recovery, Run
from tasks.deploys import interrupted_deploys, temporary_servers
from tasks.runs.stages import stage
from tasks.state import deploy_journal


@stage("recover", run_name="recover {run.pipeline}")
def recover(
    deployment: DeploymentConfig, smoke_test: SmokeTestConfig, run: Run, dry_run: bool = False
) -> Recovery:
    """Complete or roll back an interrupted deploy and restart the recorded server.

    What was published is proven by its answers, or withdrawn. A dry run only tells what is unfinished.
    Raises SlipwayError where neither can be done; the journal stays then.
    """
    if dry_run:
        return interrupted_deploys.found(run)
    temporary_servers.stop(run.pipeline, "canary")  # of a run that was killed: no other is under way now
    temporary_servers.stop(run.pipeline, "baseline")
    with deploy_journal.held(run.pipeline, deployment.load_timeout_seconds):
        return interrupted_deploys.recover_locked(deployment, smoke_test, run)
