"""What a run did: a record filled in while it goes, and the verdict it ends in. No Prefect here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from tasks.core.artifacts import (
    Baseline,
    Check,
    Endpoint,
    Evaluation,
    ModelVersion,
    Picture,
    SliceMetrics,
    StageReport,
    Verdict,
    Withdrawal,
)
from tasks.core.errors import Rejected, SlipwayError
from tasks.runs.finished_stages import FinishedStages

Outcome = Literal[
    "deployed", "trained", "checked", "skipped", "rejected", "failed", "cancelled", "rolled_back", "restored"
]


@dataclass
class StageEntry:
    """One stage: how long it took, how it ended, and its result."""

    name: str
    started: float
    """By the monotonic clock."""
    at: str = ""
    """The same by the wall clock: ISO 8601, UTC."""
    seconds: float = 0.0
    outcome: str = "running"
    summary: str = ""


@dataclass(frozen=True)
class Event:
    """Something a watcher may want to show: a stage began, made progress or ended, or the run did."""

    kind: Literal["stage_started", "progress", "stage_ended", "run_ended"]
    entry: StageEntry | None = None
    progress: Mapping[str, Any] = field(default_factory=dict)
    verdict: Verdict | None = None


Watcher = Callable[[Event], None]


@dataclass
class RunRecord:
    """The stages, checks, version and endpoint of one run so far."""

    pipeline: str = ""
    run_id: str = ""
    stages: list[StageEntry] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    baseline: Baseline | None = None
    slices: tuple[SliceMetrics, ...] = ()
    pictures: list[Picture] = field(default_factory=list)
    version: int | None = None
    previous_version: int | None = None
    endpoint: Endpoint | None = None
    rolled_back: bool = False
    dry: bool = False
    """Whether it was to end before anything is trained."""
    skipped: bool = False
    """Whether there was nothing new to train on."""
    error: BaseException | None = None
    traceback: Path | None = None
    """The file with the error's traceback, if it is a defect."""
    watchers: tuple[Watcher, ...] = ()
    finished: FinishedStages | None = None
    """What stages came to, kept for a resumed run; None where a stage is run alone."""

    @contextmanager
    def stage(self, name: str) -> Iterator[StageEntry]:
        """Time a stage and note how it ended. A stage that is tried again has one entry."""
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        entry = StageEntry(name, started=time.monotonic(), at=at)
        self.stages = [stage for stage in self.stages if stage.name != name] + [entry]
        self._tell(Event("stage_started", entry))
        try:
            yield entry
            entry.outcome = "passed"
        except BaseException as error:
            entry.outcome, entry.summary = _ending(error)
            self.checks.extend(getattr(error, "checks", ()))
            if isinstance(error, Rejected) and error.evaluated is not None:
                self._note_evaluation(error.evaluated)
            raise
        finally:
            entry.seconds = time.monotonic() - entry.started
            self._tell(Event("stage_ended", entry))

    def note(self, entry: StageEntry, artifact: Any) -> None:
        """Record the result, the checks and the verdict's fields of a stage's artifact."""
        entry.summary = artifact.summary() if hasattr(artifact, "summary") else ""
        self.checks.extend(getattr(artifact, "checks", ()))
        if isinstance(artifact, Evaluation):
            self._note_evaluation(artifact)
        else:
            self.pictures.extend(getattr(artifact, "pictures", ()))
        if isinstance(artifact, ModelVersion):
            self.version, self.previous_version = artifact.number, artifact.previous
        if isinstance(artifact, Endpoint):
            self.endpoint = artifact
        if isinstance(artifact, Withdrawal):
            self.rolled_back = artifact.serving is not None

    def note_restored(self, done: Withdrawal) -> None:
        """Record which version a rollback made live."""
        self.version, self.previous_version = done.serving, done.number

    def _note_evaluation(self, evaluated: Evaluation) -> None:
        self.metrics, self.baseline = dict(evaluated.metrics), evaluated.baseline
        self.slices = evaluated.slices
        self.pictures.extend(evaluated.pictures)

    def progress(self, progress: Mapping[str, Any]) -> None:
        """Report progress of the running stage to watchers."""
        if self.stages:
            self._tell(Event("progress", self.stages[-1], progress))

    def end(self) -> None:
        """Report the end of the run, and its verdict, to watchers."""
        self._tell(Event("run_ended", verdict=self.verdict()))

    def verdict(self) -> Verdict:
        """Return what is known now, as `verdict.json` has it."""
        return Verdict(
            pipeline=self.pipeline,
            run_id=self.run_id,
            outcome=self._outcome(),
            version=self.version,
            previous_version=self.previous_version,
            endpoint={"grpc": self.endpoint.grpc, "rest": self.endpoint.rest} if self.endpoint else None,
            stages=tuple(
                StageReport(entry.name, round(entry.seconds, 3), entry.outcome, entry.summary, entry.at)
                for entry in self.stages
            ),
            checks=tuple(self.checks),
            metrics=self.metrics,
            error=_described(self.error, self.traceback) if self.error else None,
            baseline=self.baseline,
            slices=self.slices,
            pictures=tuple(self.pictures),
        )

    def _outcome(self) -> Outcome:
        if isinstance(self.error, Rejected):
            return "rejected"
        if self.error is not None:
            ended: Outcome = "failed" if isinstance(self.error, Exception) else "cancelled"
            return "rolled_back" if self.rolled_back else ended
        if self.dry:
            return "checked"
        if self.skipped:
            return "skipped"
        if self.rolled_back:
            return "restored"
        return "deployed" if self.version is not None else "trained"

    def _tell(self, event: Event) -> None:
        for watcher in self.watchers:
            watcher(event)


def _ending(error: BaseException) -> tuple[str, str]:
    """Return a stage's outcome, and what to say of it, when it ended in `error`."""
    if isinstance(error, SlipwayError):
        return "rejected" if isinstance(error, Rejected) else "failed", error.message
    if isinstance(error, Exception):
        return "failed", f"{type(error).__name__}: {error}"
    return "interrupted", type(error).__name__


def _described(error: BaseException, traceback: Path | None) -> dict[str, str]:
    if isinstance(error, SlipwayError):
        return {"class": type(error).__name__, "message": error.message, "hint": error.hint}
    if isinstance(error, Exception):
        hint = f"a defect: please report it, with {traceback}" if traceback else "a defect: please report it"
        return {"class": type(error).__name__, "message": str(error), "hint": hint}
    return {
        "class": "Interrupted",
        "message": f"the run was interrupted ({type(error).__name__})",
        "hint": "what it finished is kept, and its checkpoints: slipway run PIPELINE --resume goes on",
    }


_current: ContextVar[RunRecord | None] = ContextVar("slipway_run_record", default=None)
_watchers: ContextVar[tuple[Watcher, ...]] = ContextVar("slipway_watchers", default=())


def current_record() -> RunRecord:
    """Return the record of the run in this context; a stage run alone gets one of its own."""
    return _current.get() or RunRecord()


@contextmanager
def recording(pipeline: str, run_id: str) -> Iterator[RunRecord]:
    """Make a new record the current one. An error that ends the run is noted in it, and raised."""
    record = RunRecord(pipeline, run_id, watchers=_watchers.get())
    token = _current.set(record)
    try:
        yield record
    except BaseException as error:
        record.error = error
        raise
    finally:
        _current.reset(token)


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Report every event of the runs inside the block to `watcher`."""
    token = _watchers.set((*_watchers.get(), watcher))
    try:
        yield
    finally:
        _watchers.reset(token)
