"""Stage 7, deploy: the new version is what the server answers with; and its undoing, withdraw."""

from __future__ import annotations

from dataclasses import replace

from prefect import get_run_logger

from configs.schema.pipeline import DeploymentConfig, SmokeTestConfig
from tasks.core.artifacts import Endpoint, ModelVersion, Run, ServingTarget, Withdrawal
from tasks.core.errors import JournalUnreadable
from tasks.deploys import rollouts, served_answers, server_lines, undoing
from tasks.runs.stages import stage
from tasks.servers import model_servers
from tasks.servers.model_servers import Deadline
from tasks.state import deploy_journal, version_checksums
from tasks.state.deploy_journal import Journal


@stage("deploy", run_name="deploy version {version.number} of {run.pipeline} ({target.kind})")
def deploy(
    version: ModelVersion,
    target: ServingTarget,
    deployment: DeploymentConfig,
    smoke_test: SmokeTestConfig,
    run: Run,
) -> Endpoint:
    """Deploy the version to the running server, or start a new one.

    A running server whose program, flags or ports changed is replaced (tasks/deploys/rollouts.py says how);
    `withdraw` puts the old one back. Raises DeployFailed with the server's last log lines,
    SmokeTestFailed where a new server answers wrongly before it takes over, and EnvironmentFault where the
    version's files are not those that were published.
    """
    version_checksums.require_unchanged(version.path)
    deadline = Deadline.after(deployment.load_timeout_seconds)
    planned = model_servers.planned(target, run)

    def prove(rehearsing: Endpoint) -> str:
        return served_answers.prove_again(rehearsing, smoke_test, run, log="rehearsal")

    with server_lines.told(run.pipeline):
        endpoint = rollouts.serve(planned, version.number, deadline, run.log("server"), prove)
    deploy_journal.note(run, "loaded")
    return endpoint


@stage(
    "withdraw",
    run_name="withdraw version {journal.numbers} of {run.pipeline}",
)
def withdraw(
    journal: Journal, deployment: DeploymentConfig, smoke_test: SmokeTestConfig, run: Run
) -> Withdrawal:
    """Hide the version from servers, and see the version before it answer; without one, stop the server.

    A server that was replaced for this version is put back. The withdrawn version is kept, as
    `<number>.withdrawn`.
    """
    return undoing.undo(journal, deployment, smoke_test, run)


def abandon(
    error: BaseException, deployment: DeploymentConfig, smoke_test: SmokeTestConfig, run: Run
) -> None:
    """Undo as much of the run's deploy as was done when `error` ended it: nothing of it stays served."""
    try:
        journal = deploy_journal.of_run(run)
    except JournalUnreadable as damage:
        get_run_logger().warning("%s: undoing what the version folders tell", damage.message)
        journal = undoing.rebuilt(run)
        if journal is None:
            deploy_journal.discard(run.pipeline)
    if journal is None:
        return
    journal = replace(undoing.as_published(journal), reason=f"{type(error).__name__}: {error}")
    if journal.versions:
        withdraw(journal, deployment, smoke_test, run)
    else:
        deploy_journal.conclude(journal, "undone")
