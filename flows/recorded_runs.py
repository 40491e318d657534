"""A run from its first stage to its verdict: what every flow wraps its stages in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.utilities.urls import url_for

from configs.loading.pipelines import Pipeline, load_pipeline
from configs.schema.pipeline import PipelineConfig
from tasks.core.artifacts import DataReview, Run, Verdict
from tasks.core.errors import ConfigError, SlipwayError
from tasks.deploys import run_retention
from tasks.processes import lost_output, tensorflow_process
from tasks.reports import next_commands, prefect_artifacts, run_events, run_metrics, run_report
from tasks.reports.next_commands import NextCommand
from tasks.reports.verdicts import as_markdown, short_reason
from tasks.runs import (
    quiet_outcomes,
    reported_verdicts,
    run_folders,
    run_records,
    tracebacks,
)
from tasks.runs.finished_stages import FinishedStages
from tasks.runs.resumable_runs import resumption, unfinished_run_of
from tasks.runs.run_folders import FlowRun
from tasks.runs.run_records import RunRecord
from tasks.servers import live_service, served_versions


@dataclass
class RecordedRun:
    """A run under way: its configuration, its folders, and its verdict so far."""

    loaded: Pipeline
    run: Run
    record: RunRecord

    @property
    def config(self) -> PipelineConfig:
        """The resolved configuration."""
        return self.loaded.config

    def ends_here(self, dry_run: bool) -> None:
        """End a dry run: the block is left, and the verdict is `checked`. Any other run goes on."""
        if dry_run:
            self.record.dry = True
            raise _EndsHere

    def ends_if_needless(self, review: DataReview) -> None:
        """End a run that has nothing new to train on: the verdict is `skipped`. Any other run goes on."""
        if review.needless:
            self.record.skipped = True
            raise _EndsHere

    def state(self) -> State[Any]:
        """Return the Prefect state that the verdict amounts to, under a name that says it."""
        return state_of(self.record.verdict(), self.run)


class _EndsHere(Exception):
    """No error: all that there is to do is done."""


@contextmanager
def recorded_run(
    pipeline: str, overrides: Mapping[str, Any] | None, run_id: str | None, resume: str | None = None
) -> Iterator[RecordedRun]:
    """Read the configuration, take the pipeline's lock, and end in a verdict, whatever happens inside.

    The verdict is in the run's folder as `verdict.json` and in the Prefect UI as an artifact. A
    SlipwayError ends the block and is told by the verdict and by `state()`, not raised again; any other
    exception is noted and raised. Raises ConfigError before anything else has happened.

    `resume` names a run that did not come to its end, or is `newest`: it goes on in its folder, with its
    own configuration, and its finished stages are not repeated. So does a flow run that Prefect runs again
    (*Retry* in the UI).
    """
    quiet_outcomes.install()
    try:
        if resume is None and (resume := _retried(pipeline)) is not None:
            overrides = None  # they are in the run's own configuration
        loaded, run = _begun(pipeline, overrides, run_id, resume)
    except ConfigError as error:
        refused = RunRecord(pipeline, error=error).verdict()
        reported_verdicts.tell(refused)
        prefect_artifacts.add_to_name(short_reason(refused))
        raise
    lost_output.survive()
    tensorflow_process.prepare()
    record = RunRecord()
    begun = False
    try:
        with (
            run_records.recording(run.pipeline, run.run_id) as record,
            run_folders.opened(loaded, run, _flow_run()),
        ):
            begun = True
            prefect_artifacts.tag(run.pipeline)
            record.watchers += (prefect_artifacts.LiveTraining(run.pipeline).watch,)
            record.finished = FinishedStages(run, resumed=resume is not None)
            run_report.write_for_killed(loaded, besides=run.run_id)
            yield from _until_its_verdict(RecordedRun(loaded, run, record))
    except SlipwayError:
        if not begun:
            raise
    finally:
        tensorflow_process.close()
        record.end()


def _retried(pipeline: str) -> str | None:
    """Return the unfinished run that this very flow run made before; None in its first try."""
    this = _flow_run()
    return unfinished_run_of(pipeline, this.flow_run) if this is not None else None


def _begun(
    pipeline: str, overrides: Mapping[str, Any] | None, run_id: str | None, resume: str | None
) -> tuple[Pipeline, Run]:
    if resume is None:
        loaded = load_pipeline(pipeline, overrides)
        chosen = run_folders.required_name(run_id) if run_id else None
        run = run_folders.describe(loaded, chosen or run_folders.new_run_id(loaded.config.name))
        run_folders.require_unused(run, _flow_run())
        return loaded, run
    found = resumption(pipeline, resume, overrides)
    get_run_logger().info(found.told())
    return found.pipeline, found.run


def _flow_run() -> FlowRun | None:
    return FlowRun(str(flow_run.flow_name), str(flow_run.id)) if flow_run.id else None


def _until_its_verdict(this: RecordedRun) -> Iterator[RecordedRun]:
    try:
        yield this
    except _EndsHere:
        pass
    except BaseException as error:
        this.record.error = error
        this.record.traceback = tracebacks.write(error, this.run.folder / "logs" / tracebacks.NAME)
        raise
    finally:
        _conclude(this)


def _conclude(this: RecordedRun) -> None:
    verdict = this.record.verdict()
    _keep(verdict, run_folders.verdict_file(this.run))
    with _verdict_stands():
        run_report.write(this.loaded, this.run)
    report(verdict, this.loaded, this.run)
    if verdict.outcome == "checked":
        return  # it says nothing of the night
    serving = None
    with _verdict_stands():
        serving = served_versions.served(this.run)
    with _verdict_stands():
        run_metrics.write(verdict, serving[0] if serving else None)
    if verdict.outcome != "cancelled":  # a person waits for it to end
        with _verdict_stands():
            _clean_up(this)


def report(verdict: Verdict, loaded: Pipeline, run: Run) -> None:
    """Report to Prefect how the run ended: verdict, page, name of the flow run, last log line, event."""
    with _verdict_stands():
        reported_verdicts.tell(verdict)
    with _verdict_stands():
        name = f"{run.pipeline}-verdict"
        prefect_artifacts.show(name, page_in_prefect(verdict, loaded, run), _headline(verdict))
    if verdict.error is not None:
        prefect_artifacts.add_to_name(short_reason(verdict))
        get_run_logger().error(
            "%s: %s. Verdict: %s", _headline(verdict), verdict.error["message"], _page(run)
        )
    if verdict.outcome != "checked":  # a dry run says nothing of the night
        with _verdict_stands():
            run_events.tell(verdict, _headline(verdict), str(run.folder))


def page_in_prefect(verdict: Verdict, loaded: Pipeline, run: Run) -> str:
    """Return the verdict's page in the Prefect UI. A browser opens no file from it: it names the command."""
    if not run.folder.is_dir():
        return as_markdown(verdict)
    head = run_report.summary(loaded, run, live_service.of(run.pipeline))
    opens = NextCommand(next_commands.report(run.run_id, loaded.file), "opens report.html, its one page")
    return as_markdown(verdict, str(run.folder), head.serving, (*head.next, opens))


def state_of(verdict: Verdict, run: Run) -> State[Any]:
    """Return the Prefect state that the verdict amounts to, under a name that says it."""
    name = verdict.outcome.replace("_", " ").title().replace(" ", "")
    if verdict.error is None:
        return Completed(name=name, message=_headline(verdict))
    return Failed(name=name, message=f"{verdict.error['message']}. Verdict: {_page(run)}")


def _clean_up(this: RecordedRun) -> None:
    """Remove and compress old runs."""
    done = run_retention.clean(this.loaded, this.run.run_id)
    if done.removed or done.tidied:
        get_run_logger().info(done.summary())


@contextmanager
def _verdict_stands() -> Iterator[None]:
    """Log an error of the block: what is reported after a run neither fails it nor hides its error."""
    try:
        yield
    except Exception as error:
        get_run_logger().warning(
            "the verdict stands; reporting it failed: %s: %s", type(error).__name__, error
        )


def _page(run: Run) -> str:
    """Return the flow run's page in the UI, which shows the verdict; without a UI, the file."""
    found = url_for("flow-run", flow_run.id) if flow_run.id else None
    return found or str(run_folders.verdict_file(run))


def _keep(verdict: Verdict, file: Path) -> None:
    """Write the verdict; a disk that is full hides neither the run's error nor that it deployed.

    Without it the run counts as one that was killed: `--resume` goes on with it, and finds all as it is.
    """
    try:
        run_folders.write_verdict(verdict, file)
    except OSError as error:
        get_run_logger().warning("%s is not written: %s", file, error.strerror)


def _headline(verdict: Verdict) -> str:
    version = f" version {verdict.version}" if verdict.version is not None else ""
    return f"{verdict.pipeline}{version}: {verdict.outcome.replace('_', ' ')}"
