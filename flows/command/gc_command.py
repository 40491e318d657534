"""`slipway gc`: remove old runs and compress what stays, now."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from configs.loading.errors import ConfigError
from configs.loading.pipelines import Pipeline
from tasks.deploys import run_retention
from tasks.runs import run_folders

console = Console(highlight=False)


def run(pipelines: Sequence[Pipeline], dry_run: bool) -> int:
    """Clean up the runs of each pipeline, and print what was freed. Raises AlreadyRunning."""
    if not pipelines:
        raise ConfigError("slipway gc needs the pipelines whose runs to clean up", "slipway gc PIPELINE…")
    for pipeline in pipelines:
        with run_folders.locked(pipeline):
            done = run_retention.clean(pipeline, dry_run=dry_run)
        prefix = "would be: " if dry_run else ""
        console.print(f"{pipeline.config.name}: {prefix}{done.summary()}", markup=False, soft_wrap=True)
        for run_id in done.removed:
            console.print(f"  {run_id}", markup=False)
    return 0
