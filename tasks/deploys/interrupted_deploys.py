"""Deploys that an earlier run did not live to end: finished or undone, before anything else is changed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from configs.loading.errors import ConfigError
from configs.loading.pipelines import Pipeline, load_pipeline
from configs.schema.home import home
from configs.schema.pipeline import DeploymentConfig, SmokeTestConfig
from tasks.core.artifacts import Endpoint, Recovery, Run
from tasks.core.errors import DeployFailed, JournalUnreadable, SlipwayError
from tasks.deploys import rollouts, served_answers, undoing
from tasks.runs import run_folders, run_order
from tasks.servers import model_servers, model_status
from tasks.servers.model_servers import Deadline
from tasks.state import deploy_journal, model_versions
from tasks.state.deploy_journal import Journal


def recover(pipeline: Pipeline) -> Recovery:
    """Complete or roll back an interrupted deploy of the pipeline and restart its recorded server.

    Needs no run and no Prefect; logs are in the killed run's folder. Raises AlreadyRunning where a deploy
    or a rollback is under way, and SlipwayError where neither finishing nor undoing can be done.
    """
    name = pipeline.config.name
    run = run_folders.describe(pipeline, _run_id(name) or run_folders.new_run_id(name))
    with deploy_journal.held(run.pipeline, timeout_seconds=0):
        return recover_locked(pipeline.config.deployment, pipeline.config.smoke_test, run)


def left() -> dict[str, Pipeline | ConfigError]:
    """Return the pipelines with an unfinished deploy, or whose server on record is gone or mute, by name.

    A killed rollback leaves one, and an undoing that failed. Each is as it was last run, or the error that
    its last run's configuration cannot be read, as after a damage or by another release.
    """
    found: dict[str, Pipeline | ConfigError] = {}
    for folder in sorted(folder for folder in (home() / "runs").glob("*") if folder.is_dir()):
        if _is_left(folder.name) and _configurations(folder):
            try:
                found[folder.name] = _as_last_run(folder)
            except ConfigError as error:
                found[folder.name] = error
    return found


def _is_left(name: str) -> bool:
    if os.path.lexists(deploy_journal.file(name)):  # a link that leads nowhere is a damaged journal
        return True
    record = model_servers.recorded(name)
    if record is None or not record.handle or record.target == "external":
        return False
    return not model_servers.is_alive(record) or model_servers.is_mute(record)


def _configurations(folder: Path) -> list[Path]:
    return [each / "config.yaml" for each in run_order.oldest_first(folder.name, "config.yaml")]


def _as_last_run(folder: Path) -> Pipeline:
    """Return the pipeline; a relative base path was relative to its YAML, so that the noted one is taken."""
    try:
        noted = deploy_journal.read(folder.name) or model_servers.recorded(folder.name)
    except JournalUnreadable:
        noted = model_servers.recorded(folder.name)
    base = {"export.model_base_path": str(noted.model_base_path)} if noted else {}
    return load_pipeline(_configurations(folder)[-1], base)


def recover_locked(deployment: DeploymentConfig, smoke_test: SmokeTestConfig, run: Run) -> Recovery:
    """Do the same for the holder of the deploy lock."""
    record = model_servers.recorded(run.pipeline)
    if record is not None and record.published_only:
        model_versions.list_published(run.model_base_path)
    recovery = settle(deployment, smoke_test, run)
    return recovery if recovery.found else _revived(deployment, run)


def _run_id(name: str) -> str | None:
    try:
        journal = deploy_journal.read(name)
    except JournalUnreadable:
        return None
    return journal.run_id if journal else None


def found(run: Run) -> Recovery:
    """Return what is unfinished; nothing is done about it."""
    file = deploy_journal.file(run.pipeline)
    return Recovery(f"a deploy is unfinished ({file})", "left as it is") if file.exists() else Recovery()


def settle(deployment: DeploymentConfig, smoke_test: SmokeTestConfig, run: Run) -> Recovery:
    """Finish or undo the deploy that the journal tells of. Only for the holder of the deploy lock.

    A version that has not been proven yet is proven now, else withdrawn: it passed every gate before it
    was published, so that finishing is tried first. An undoing goes on. A deploy that published nothing
    is forgotten; its candidate stays.
    """
    try:
        journal = deploy_journal.read(run.pipeline)
    except JournalUnreadable as error:
        return _settle_unreadable(error, deployment, smoke_test, run)
    if journal is None:
        return Recovery()
    return _settle(undoing.as_published(journal), deployment, smoke_test, run)


def _settle(
    journal: Journal, deployment: DeploymentConfig, smoke_test: SmokeTestConfig, run: Run
) -> Recovery:
    told = f"run {journal.run_id} was killed, its deploy {journal.state}"
    if not journal.versions:
        deploy_journal.conclude(journal, "undone")
        return Recovery(told, "it had published nothing, so that nothing is to be undone")
    if journal.state == "undoing" or max(journal.versions) != _highest(journal):
        done = undoing.undo(journal, deployment, smoke_test, run)
        return Recovery(told, done.summary())
    try:
        return Recovery(told, _finish(journal, deployment, smoke_test, run))
    except SlipwayError as error:
        done = undoing.undo(replace(journal, reason=error.message), deployment, smoke_test, run)
        return Recovery(told, f"{done.summary()} ({error.message})")


def _highest(journal: Journal) -> int | None:
    """Return the version that servers take: none lower is ever loaded, and would be proven in vain."""
    return max(model_versions.published(journal.model_base_path), default=None)


def _finish(journal: Journal, deployment: DeploymentConfig, smoke_test: SmokeTestConfig, run: Run) -> str:
    """Repeat the remaining steps, each of which is idempotent. Raises SlipwayError."""
    if journal.server is None:
        raise DeployFailed(f"no server of {journal.pipeline} runs that could be asked")
    version, deadline = max(journal.versions), Deadline.after(deployment.load_timeout_seconds)

    def prove(asked: Endpoint) -> str:
        return served_answers.prove_again(asked, smoke_test, run, log="recover")

    endpoint = rollouts.serve(journal.server, version, deadline, run.log("recover"), prove)
    proof = "it had passed its smoke test"
    if journal.state != "smoke-tested":
        deploy_journal.write(replace(journal, state="loaded"))
        proof = prove(endpoint)
    rollouts.settle(journal.pipeline)
    deploy_journal.conclude(journal, "committed")
    return f"version {version} stays: {proof}"


def _settle_unreadable(
    error: JournalUnreadable, deployment: DeploymentConfig, smoke_test: SmokeTestConfig, run: Run
) -> Recovery:
    """Conclude from the disk what the journal does not tell: is the version that servers take proven?

    It is where its run's deploy is filed as committed. Else it is proven now, or withdrawn.
    """
    told = f"the deploy journal cannot be read ({error.message})"
    present = model_versions.published(run.model_base_path)
    if not present:
        deploy_journal.discard(run.pipeline)
        return Recovery(told, "no version is there that it could be about")
    number = max(present)
    origin = model_versions.origin(present[number])
    run_id = origin.get("run_id", "")
    if run_id and deploy_journal.conclusion(run.pipeline, run_id) == "committed":
        deploy_journal.discard(run.pipeline)
        return Recovery(told, f"version {number} was smoke-tested by run {run_id}, and stays")
    server = model_servers.recorded(run.pipeline)
    journal = Journal(run.pipeline, run_id or run.run_id, run.model_base_path, "published",
                      origin.get("previous"), (number,), server)  # fmt: skip
    return replace(_settle(journal, deployment, smoke_test, run), found=told)


def _revived(deployment: DeploymentConfig, run: Run) -> Recovery:
    """Start the server on record that died, or hangs; while this run trains, the last version answers."""
    record, seconds = model_servers.recorded(run.pipeline), deployment.load_timeout_seconds
    version = max(model_versions.published(run.model_base_path), default=None)
    if record is None or not record.handle or version is None:
        return Recovery()
    is_alive = model_servers.is_alive(record)
    if is_alive and (record.target == "external" or model_servers.answers(record, Deadline.after(seconds))):
        return Recovery()
    state = "was gone" if not is_alive else "answered with no version"
    if is_alive and model_status.live_version(record.rest, record.model_name) is not None:
        state = "did not answer over gRPC"
    told = f"the server ({record.describe()}) {state}"
    try:
        started = rollouts.started_anew(record, version, seconds, run.log("recover"))
    except SlipwayError as error:
        return Recovery(told, f"it cannot be started again: {error.message}")
    return Recovery(told, f"{started.describe()} answers with version {version} in its place")
