"""Stage 9, retire: old versions leave the disk; the live one and the one before it never do."""

from __future__ import annotations

from configs.schema.pipeline import ExportConfig
from tasks.core.artifacts import ModelVersion, Retention, Run
from tasks.runs.stages import stage
from tasks.state import model_versions


@stage("retire", run_name="retire versions of {run.pipeline}, keep {export.keep_versions}")
def retire(version: ModelVersion, export: ExportConfig, run: Run) -> Retention:
    """Remove versions beyond `export.keep_versions`.

    Only for the holder of the deploy lock: a rollback goes back to a version that is still there.
    """
    protected = {version.number} | ({version.previous} if version.previous is not None else set())
    removed = model_versions.prune(run.model_base_path, export.keep_versions, protected)
    return Retention(kept=tuple(model_versions.versions(run.model_base_path)), removed=removed)
