"""Stopping what serves a model, by hand: no run, no Prefect."""

from __future__ import annotations

from configs.loading.pipelines import Pipeline
from configs.schema.home import runs_folder
from tasks.core.errors import EnvironmentFault
from tasks.deploys import rollouts
from tasks.runs import run_folders
from tasks.servers import model_servers
from tasks.state import deploy_journal
from tasks.state.server_records import ServerRecord


def stop(pipeline: Pipeline) -> list[ServerRecord]:
    """Drain and stop every server of the pipeline's model, and return them; versions and runs stay.

    Holds the deploy lock. Raises AlreadyRunning while a deploy or a rollback is under way, and
    EnvironmentFault for an external server, or if Docker does not answer.
    """
    name = pipeline.config.name
    if model_servers.recorded(name) is None and not runs_folder(name).is_dir():
        return []  # nothing was ever run here, and no folder is made
    with deploy_journal.held(name, run_folders.longest_wait(pipeline.config.deployment)):
        record = model_servers.recorded(name)
        if record is not None and record.handle and record.target == "external":
            raise EnvironmentFault(f"{name}: no run started {record.describe()}", "stop it where it runs")
        return rollouts.stop(name, deploy_journal.planned_server(name))
