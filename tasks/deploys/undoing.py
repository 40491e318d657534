"""Undoing a deploy: what was published is withdrawn, and the version before answers again.

Each step is idempotent: whoever finds the journal of an undoing that was killed does all of it again.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from configs.schema.pipeline import DeploymentConfig, SmokeTestConfig
from tasks.core.artifacts import Run, Withdrawal
from tasks.core.errors import AnswersDiffer, EnvironmentFault
from tasks.deploys import deploy_events, rollouts, served_answers
from tasks.servers import model_servers
from tasks.state import deploy_journal, model_versions
from tasks.state.deploy_journal import Journal
from tasks.state.server_records import ServerRecord

_log = logging.getLogger(__name__)


def as_published(journal: Journal) -> Journal:
    """Return the journal with the version that its run published, which may not have been noted."""
    found = model_versions.published_by(journal.model_base_path, journal.run_id)
    if journal.versions or found is None:
        return journal
    return replace(journal, versions=(int(found[0].name),))


def rebuilt(run: Run) -> Journal | None:
    """Return the journal of the run's deploy as the version folders tell it; None if it published nothing.

    For a journal that was damaged meanwhile.
    """
    found = model_versions.published_by(run.model_base_path, run.run_id)
    if found is None:
        return None
    folder, origin = found
    return Journal(
        run.pipeline, run.run_id, run.model_base_path, "published", origin.get("previous"),
        (int(folder.name),), model_servers.recorded(run.pipeline),
    )  # fmt: skip


def undo(journal: Journal, deployment: DeploymentConfig, smoke_test: SmokeTestConfig, run: Run) -> Withdrawal:
    """Hide the journal's versions from servers, and see the version before them answer as it should.

    Without one, the server is stopped. A server that was replaced for this deploy serves again. What is
    withdrawn is kept, as `<number>.withdrawn`. A version before that answers, but with other numbers than it
    was deployed with, keeps serving; the proof and a warning say so. Raises DeployFailed, SmokeTestFailed,
    EnvironmentFault; the journal stays then, and whoever finds it tries again.
    """
    _list_published(journal)
    journal = _noted(replace(journal, state="undoing", previous=_to_serve(journal)))
    for number in sorted(journal.versions):  # the one that is served last: servers go straight to `previous`
        model_versions.withdraw(journal.model_base_path, number)
    done = Withdrawal(max(journal.versions), serving=journal.previous)
    if journal.previous is None:
        rollouts.stop(journal.pipeline)
        if journal.server is not None and journal.server.target == "external":
            done = replace(done, proof=f"{journal.server.describe()} is left without one")
    elif (record := rollouts.put_back(journal.pipeline, journal.server)) is None:
        done = replace(done, proof=f"once a server of {journal.pipeline} is started")
    else:
        proof = _see_it_answer(record, journal.previous, deployment, smoke_test, run)
        done = replace(done, proof=proof)
    deploy_journal.conclude(journal, "undone")
    deploy_events.rolled_back(journal.pipeline, done, journal.reason)
    return done


def _list_published(journal: Journal) -> None:
    """Restore a lost list of published versions: a server that cannot read it keeps what it serves."""
    record = model_servers.recorded(journal.pipeline) or journal.server
    if record is not None and record.published_only:
        model_versions.list_published(journal.model_base_path)


def _to_serve(journal: Journal) -> int | None:
    """Return the version of before, while it is there, else the highest that stays."""
    staying = set(model_versions.published(journal.model_base_path)) - set(journal.versions)
    return journal.previous if journal.previous in staying else max(staying, default=None)


def _noted(journal: Journal) -> Journal:
    """Record the intent to roll back; continue on a full disk, so that no bad version keeps serving."""
    try:
        return deploy_journal.write(journal)
    except EnvironmentFault as error:
        _log.warning("%s: undone all the same", error.message)
        return journal


def _see_it_answer(
    record: ServerRecord, version: int, deployment: DeploymentConfig, smoke_test: SmokeTestConfig, run: Run
) -> str:
    log = run.log("server-before")
    record = rollouts.see_live(record, version, deployment.load_timeout_seconds, log)
    endpoint = rollouts.endpoint(record, version, started=False)
    try:
        return served_answers.prove_again(endpoint, smoke_test, run, log="withdraw")
    except AnswersDiffer as error:
        # No other version is better known, and the next run needs a journal that is concluded.
        differs = f"its answers differ from those it was deployed with: {error.message}"
        _log.warning("version %d of %s serves, but %s", version, run.pipeline, differs)
        return differs
