"""Stage 6, publish: the candidate becomes the next version, at one instant; and its undoing."""

from __future__ import annotations

from configs.schema import ExportConfig
from tasks import model_versions
from tasks.artifacts import Candidate, ModelVersion, Run
from tasks.stages import stage


@stage("publish", run_name="publish the next version of {run.pipeline}")
def publish(candidate: Candidate, export: ExportConfig, live_version: int | None, run: Run) -> ModelVersion:
    """Make the candidate visible to servers, atomically, under a number higher than any before.

    Once a run: a resumed one that was killed after the rename finds the version that it published.
    """
    if (found := model_versions.published_by(run.model_base_path, run.run_id)) is not None:
        folder, origin = found
        return ModelVersion(int(folder.name), folder, previous=origin["previous"])
    on_disk = max(model_versions.versions(run.model_base_path), default=None)
    previous = live_version or on_disk
    origin = {"run_id": run.run_id, "previous": previous}
    folder = model_versions.publish(candidate.path, run.model_base_path, export.version_names, origin=origin)
    return ModelVersion(int(folder.name), folder, previous=previous)
