"""Rolling back: an earlier version serves again, without training; those after it are withdrawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from configs.loading.pipelines import Pipeline
from tasks.core.artifacts import Run, Withdrawal
from tasks.core.errors import ConfigError
from tasks.deploys import undoing
from tasks.reports import run_metrics, run_report
from tasks.runs import run_folders, run_records
from tasks.runs.run_records import RunRecord
from tasks.servers import model_servers, model_status
from tasks.state import deploy_journal, model_versions, version_checksums
from tasks.state.deploy_journal import Journal


@dataclass(frozen=True)
class Choice:
    """The version to serve again, and those to withdraw for it."""

    journal: Journal

    def summary(self) -> str:
        """Return the stage's result, in one line."""
        back = f"version {self.journal.previous} is as it was published"
        return f"{back}; to be withdrawn: {self.journal.numbers}"


def roll_back(pipeline: Pipeline, to: int | None = None) -> Withdrawal:
    """Make version `to` live, by default the one before the live one, and withdraw every later one.

    It is proven by its answers, and the verdict says `restored`. Needs no Prefect, and does not wait for a
    run that trains: only what is served is locked. A deploy that an earlier run did not live to end is
    withdrawn with the rest. Raises ConfigError where there is no such version, EnvironmentFault where
    its files have changed since it was published, AlreadyRunning while a deploy is under way.
    """
    run = begun(pipeline)
    with locked(pipeline, run):
        journal = choose(run, to).journal
        with recorded(pipeline, run) as record, record.stage("withdraw") as entry:
            done = undoing.undo(journal, pipeline.config.deployment, pipeline.config.smoke_test, run)
            record.note(entry, done)
            record.note_restored(done)
            return done


def begun(pipeline: Pipeline) -> Run:
    """Return a new run, which has no folder yet."""
    return run_folders.describe(pipeline, run_folders.new_run_id(pipeline.config.name))


@contextmanager
def locked(pipeline: Pipeline, run: Run) -> Iterator[None]:
    """Hold the deploy lock. Raises AlreadyRunning while a deploy is under way."""
    with deploy_journal.held(run.pipeline, run_folders.longest_wait(pipeline.config.deployment)):
        yield


def choose(run: Run, to: int | None) -> Choice:
    """Choose the version to serve again. Raises ConfigError, and EnvironmentFault if its files changed."""
    target, live = _target(run, to)
    present = model_versions.versions(run.model_base_path)
    version_checksums.require_unchanged(present[target])
    return Choice(Journal(
        run.pipeline, run.run_id, run.model_base_path, "undoing", previous=target,
        versions=tuple(sorted({live, *(number for number in present if number > target)})),
        reason=f"rolled back to version {target} by hand",
        server=deploy_journal.planned_server(run.pipeline),
    ))  # fmt: skip


@contextmanager
def recorded(pipeline: Pipeline, run: Run) -> Iterator[RunRecord]:
    """Write a verdict, a report and metrics, however the block ends."""
    record = RunRecord()
    try:
        with run_records.recording(run.pipeline, run.run_id) as record:
            run_folders.make(run)
            yield record
    finally:
        run_folders.write_verdict(record.verdict(), run_folders.verdict_file(run))
        run_report.write(pipeline, run)
        run_metrics.write(record.verdict(), _live(run))


def _target(run: Run, to: int | None) -> tuple[int, int]:
    """Return the version to go back to, and the live one, whose folder somebody may have removed.

    Raises ConfigError, naming those that there are.
    """
    present = sorted(model_versions.published(run.model_base_path))
    live = _live(run) or max(present, default=None)
    earlier = [number for number in present if live is not None and number < live]
    if live is not None and earlier and (to is None or to in earlier):
        return (earlier[-1] if to is None else to), live
    if not earlier and to is None:
        message = f"There is no earlier version of {run.pipeline} to roll back to"
        raise ConfigError(message, _named(run.model_base_path, earlier))
    wanted = "no version" if to is None else f"no version {to}"
    serving = f" before {live}, which serves" if live is not None else ""
    raise ConfigError(f"{run.pipeline} has {wanted}{serving}", _named(run.model_base_path, earlier))


def _live(run: Run) -> int | None:
    record = model_servers.running(run.pipeline)
    return model_status.live_version(record.rest, run.pipeline) if record else None


def _named(base: Path, earlier: list[int]) -> str:
    """Return which versions can be rolled back to, and which cannot because they were withdrawn."""
    kept = ", ".join(map(str, model_versions.withdrawn(base)))
    hidden = f"; withdrawn, and kept for inspection: {kept}" if kept else ""
    if not earlier:
        return f"`slipway run` makes another version{hidden}"
    return f"versions to roll back to: {', '.join(map(str, earlier))}{hidden}"
