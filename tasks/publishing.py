"""Stage 6, publish: the candidate becomes the next version, at one instant."""

from __future__ import annotations

from configs.schema.pipeline import DataConfig, ExportConfig
from tasks.answers import kept_answers
from tasks.core.artifacts import Candidate, ModelVersion, Run, ServingTarget
from tasks.data_quality import statistics
from tasks.exports import extra_assets
from tasks.runs.run_records import current_record
from tasks.runs.stages import stage
from tasks.servers import model_servers, model_status
from tasks.state import deploy_journal, model_versions
from tasks.state.deploy_journal import Journal
from tasks.state.server_records import ServerRecord


@stage("publish", run_name="publish the next version of {run.pipeline}")
def publish(
    candidate: Candidate, export: ExportConfig, data: DataConfig, target: ServingTarget, run: Run
) -> ModelVersion:
    """Make the candidate visible to servers, atomically, under a number higher than any before.

    What it should answer, and what it was made of, goes with it. From here on the deploy journal says what
    is under way. Once a run: a resumed one that was killed after the rename finds the version that it
    published.
    """
    found = model_versions.published_by(run.model_base_path, run.run_id)
    running = None if found else model_servers.running(run.pipeline)
    previous = found[1]["previous"] if found else _serving_before(run, running)
    planned = model_servers.planned(target, run)
    deploy_journal.write(
        Journal(run.pipeline, run.run_id, run.model_base_path, "prepared", previous, server=planned)
    )
    if found is None:
        with model_versions.faults_named(run.model_base_path):
            made_of = (run.folder / "config.yaml", statistics.in_examples(run.folder))
            kept_answers.keep(candidate, data, also=made_of)
            extra_assets.complete(candidate.path, previous, current_record().checks)
        origin = {"run_id": run.run_id, "previous": previous}
        folder = model_versions.publish(
            candidate.path, run.model_base_path, export.version_names, origin=origin,
            # A running server that another kind of server replaces has to load the version first.
            published_only=target.published_only or (running is not None and running.published_only),
        )  # fmt: skip
    else:
        folder = found[0]
    number = int(folder.name)
    deploy_journal.note(run, "published", versions=(number,))
    return ModelVersion(number, folder, previous=previous)


def _serving_before(run: Run, running: ServerRecord | None) -> int | None:
    """Return the live version, or the highest on disk if there is none.

    Not from preflight: while this run trained, another version may have been rolled back to.
    """
    live = model_status.live_version(running.rest, run.pipeline) if running else None
    return live or max(model_versions.published(run.model_base_path), default=None)
