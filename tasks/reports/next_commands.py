"""The command that the reader of a run's report types next."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from configs.loading.errors import ConfigError
from tasks.core.errors import error_named


@dataclass(frozen=True)
class NextCommand:
    """A line to paste, and what it does."""

    command: str
    effect: str


def report(run_id: str, pipeline: Path) -> str:
    """Return the line that opens the run's report."""
    return _slipway(pipeline, "report", run_id)


def _slipway(pipeline: Path, command: str, *options: str) -> str:
    typed = pipeline.parent if pipeline.name == "pipeline.yaml" else pipeline
    return shlex.join(["slipway", command, str(typed), *options])


def after(
    outcome: str, error_class: str, rejected_by: str, previous: int | None, run_id: str, pipeline: Path
) -> list[NextCommand]:
    """Return what to type after a run, the most likely first.

    Args:
        outcome: as in `verdict.json`, or `killed`.
        error_class: class of the error that ended the run, "" if none did.
        rejected_by: stage that rejected the model, "" if none did.
        previous: version that served before this run's, None if there was none.
        run_id: the run.
        pipeline: file of the configuration that the run was started from.
    """
    slipway = partial(_slipway, pipeline)
    again = NextCommand(slipway("run"), "trains again from the start, once the cause is removed")
    goes_on = NextCommand(slipway("run", "--resume", run_id), "goes on where it ended")
    if error_class and issubclass(error_named(error_class), ConfigError):
        return [NextCommand(slipway("check"), "checks the configuration in a second"), again]
    if outcome == "rejected":
        force = NextCommand(slipway("run", "--force"), "deploys although gates of `evaluation` are missed")
        gates = NextCommand(slipway("plan"), "lists each gate and its limit")
        return [again, force] if rejected_by == "evaluate" else [again, gates]
    if outcome in ("failed", "cancelled", "killed"):
        return [goes_on, again]
    status = NextCommand(slipway("status"), "shows what serves")
    if outcome == "rolled_back":
        return [status, again]
    if outcome == "deployed" and previous is not None:
        undo = NextCommand(slipway("rollback"), f"serves version {previous} again, in seconds")
        return [status, undo]
    return [status]
