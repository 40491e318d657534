"""A run from its first stage to its verdict: what every flow wraps its stages in."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from configs.loading import Pipeline, load_pipeline
from configs.schema import PipelineConfig
from tasks import run_folders, run_records, tensorflow_process
from tasks.artifacts import Run, Verdict
from tasks.errors import SlipwayError
from tasks.finished_stages import FinishedStages
from tasks.resumable_runs import resumption
from tasks.run_records import RunRecord
from tasks.verdicts import as_markdown

_log = logging.getLogger(__name__)


@dataclass
class RecordedRun:
    """A run under way: its configuration, its folders, and its verdict so far."""

    config: PipelineConfig
    run: Run
    record: RunRecord

    def state(self) -> State[Any]:
        """Return the Prefect state that the verdict amounts to, under a name that says it."""
        verdict = self.record.verdict()
        name = verdict.outcome.replace("_", " ").title().replace(" ", "")
        if verdict.error is None:
            return Completed(name=name, message=_headline(verdict))
        return Failed(name=name, message=verdict.error["message"])


@contextmanager
def recorded_run(
    pipeline: str, overrides: Mapping[str, Any] | None, run_id: str | None, resume: str | None = None
) -> Iterator[RecordedRun]:
    """Read the configuration, take the pipeline's lock, and end in a verdict, whatever happens inside.

    The verdict is in the run's folder as `verdict.json` and in the Prefect UI as an artifact. A
    SlipwayError ends the block and is told by the verdict and by `state()`, not raised again; any other
    exception is noted and raised. Raises ConfigError before anything else has happened.

    `resume` names a run that did not come to its end, or is `newest`: it goes on in its folder, with its
    own configuration, and its finished stages are not repeated.
    """
    loaded, run = _begun(pipeline, overrides, run_id, resume)
    tensorflow_process.prepare()
    record = RunRecord()
    begun = False
    try:
        with (
            run_records.recording(run.pipeline, run.run_id) as record,
            run_folders.opened(loaded, run),
        ):
            begun = True
            record.finished = FinishedStages(run, resumed=resume is not None)
            yield from _until_its_verdict(RecordedRun(loaded.config, run, record))
    except SlipwayError:
        if not begun:
            raise
    finally:
        tensorflow_process.close_spare()
        record.end()


def _begun(
    pipeline: str, overrides: Mapping[str, Any] | None, run_id: str | None, resume: str | None
) -> tuple[Pipeline, Run]:
    if resume is None:
        loaded = load_pipeline(pipeline, overrides)
        return loaded, run_folders.describe(loaded, run_id or run_folders.new_run_id())
    found = resumption(pipeline, resume, overrides)
    get_run_logger().info(found.told())
    return found.pipeline, found.run


def _until_its_verdict(this: RecordedRun) -> Iterator[RecordedRun]:
    try:
        yield this
    except BaseException as error:
        this.record.error = error
        raise
    finally:
        _conclude(this)


def _conclude(this: RecordedRun) -> None:
    verdict = this.record.verdict()
    run_folders.write_verdict(verdict, run_folders.verdict_file(this.run))
    try:
        create_markdown_artifact(
            markdown=as_markdown(verdict),
            key=f"{this.run.pipeline.replace('_', '-')}-verdict",
            description=_headline(verdict),
        )
    except Exception as error:  # the verdict stands, whether or not Prefect's server can be told
        _log.warning("the verdict could not be shown in the Prefect UI: %s", error)


def _headline(verdict: Verdict) -> str:
    version = f" version {verdict.version}" if verdict.version is not None else ""
    return f"{verdict.pipeline}{version}: {verdict.outcome.replace('_', ' ')}"
