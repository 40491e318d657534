"""Owns `$SLIPWAY_HOME/runs/<pipeline>/`: a folder for each run, and the lock that lets one run at a time."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psutil
import yaml
from filelock import FileLock, Timeout
from pydantic_core import to_json

from configs.loading.errors import ConfigError
from configs.loading.pipelines import Pipeline
from configs.schema.home import home, runs_folder
from configs.schema.pipeline import DeploymentConfig
from tasks.core import durable_files
from tasks.core.artifacts import Run, Verdict
from tasks.core.errors import AlreadyRunning, EnvironmentFault, disk_full, is_disk_full
from tasks.runs import run_order

_log = logging.getLogger(__name__)
_VERDICT = "verdict.json"
_FLOW_RUN = ".flow_run"
"""Id of the Prefect flow run that works, or last worked, in the folder."""
_OWNER_ONLY = 0o700
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class FlowRun:
    """The Prefect flow run that a run is."""

    flow: str
    """Name of the flow."""
    flow_run: str
    """The flow run's id."""


def new_run_id(pipeline_name: str) -> str:
    """Return an id that no other run has, its start in UTC: `20261122-030000-123456`.

    It is after the start of every run of the pipeline, even if the clock went back: the last run is the one
    to resume, and the one that `slipway status` shows.
    """
    now = datetime.now(timezone.utc)
    if (newest := run_order.newest_start(pipeline_name)) is not None and now <= newest:
        # The fraction stays the clock's: it keeps two apart that begin at once.
        now = newest.replace(microsecond=now.microsecond) + timedelta(seconds=1)
    return now.strftime(run_order.RUN_ID)


def required_name(run_id: str) -> str:
    """Return an id that somebody chose. Raises ConfigError where it is no plain name: it names a folder."""
    if _NAME.fullmatch(run_id):
        return run_id
    message = f"run_id {run_id!r} names no folder: letters, digits, '.', '_' and '-', and no dot in front"
    raise ConfigError(message, "leave it out: the time is taken")


def require_unused(run: Run, flow: FlowRun | None) -> None:
    """Raise ConfigError where the run's folder is there, unless this very flow run, tried again, made it."""
    if not run.folder.exists() or (flow is not None and flow.flow_run == flow_run_of(run.folder)):
        return
    raise ConfigError(
        f"run_id {run.run_id!r}: {run.pipeline} has such a run already, in {run.folder}",
        f"leave it out: the time is taken; to go on with that run: --resume {run.run_id}",
    )


def flow_run_of(folder: Path) -> str | None:
    """Return the id of the Prefect flow run that works, or last worked, in a run's folder."""
    try:
        return (folder / _FLOW_RUN).read_text(errors="replace")
    except OSError:
        return None


def known_flow_runs() -> set[str]:
    """Return the id of the Prefect flow run of every run's folder."""
    folders = (file.parent for file in (home() / "runs").glob(f"*/*/{_FLOW_RUN}"))
    return {flow_run for folder in folders if (flow_run := flow_run_of(folder))}


def describe(pipeline: Pipeline, run_id: str) -> Run:
    """Return the run's folders; none is made."""
    name = pipeline.config.name
    return Run(
        pipeline=name,
        run_id=run_id,
        folder=runs_folder(name) / run_id,
        source=pipeline.folder,
        model_base_path=pipeline.model_base_path,
        ops=pipeline.config.server.ops,
    )


def make(run: Run) -> None:
    """Create the run's folder, readable by its owner only: it holds examples."""
    durable_files.make_folder(run.folder, _OWNER_ONLY)


@contextmanager
def locked(pipeline: Pipeline) -> Iterator[None]:
    """Hold the pipeline's lock. The operating system frees it when its holder dies.

    While a run holds it, this waits as `deployment.when_busy` says. Raises AlreadyRunning, EnvironmentFault.
    """
    with _lock(pipeline):
        yield


@contextmanager
def opened(pipeline: Pipeline, run: Run, flow: FlowRun | None = None) -> Iterator[None]:
    """Hold the pipeline's lock, with the run's folder made and its resolved configuration in it.

    The operating system frees the lock when its holder dies. While another run holds it, this one waits
    as `deployment.when_busy` says. Raises AlreadyRunning, EnvironmentFault.
    """
    folder = runs_folder(run.pipeline)
    with _lock(pipeline):
        try:
            _begin(folder, pipeline, run, flow)
            yield
        finally:
            (folder / ".running").unlink(missing_ok=True)


def _lock(pipeline: Pipeline) -> AbstractContextManager[object]:
    """Acquire the pipeline's lock for a `with` block."""
    name = pipeline.config.name
    folder = runs_folder(name)
    try:
        durable_files.make_folder(folder)
        timeout = longest_wait(pipeline.config.deployment)
        return FileLock(folder / ".lock", timeout=timeout, mode=0o600).acquire()
    except Timeout:
        raise AlreadyRunning(
            f"a run of {name} is under way{_holder(folder)}",
            "wait for it to end, or stop it; deployment.when_busy: wait has runs wait for each other",
        ) from None
    except OSError as error:
        raise EnvironmentFault(
            f"{folder} is not writable: {error.strerror}", "set SLIPWAY_HOME to a folder that is"
        ) from None


def _begin(folder: Path, pipeline: Pipeline, run: Run, flow: FlowRun | None) -> None:
    """Record the lock's holder, and create the run's folder and configuration. Raises EnvironmentFault."""
    resolved = pipeline.config.model_dump(mode="json", by_alias=True)
    text = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)
    try:
        note(folder, pipeline, run, flow)
        make(run)
        for name in (_FLOW_RUN, "config.yaml"):  # of a run that is resumed
            durable_files.move_folder_aside(run.folder / name)
        run_order.record_start(run.folder)
        durable_files.write(run.folder / _FLOW_RUN, (flow.flow_run if flow else "").encode(), synced=False)
        durable_files.write(run.folder / "config.yaml", text.encode())
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(folder, str(error.strerror)) from None
        message = f"{folder} cannot be written to: {error.strerror}"
        raise EnvironmentFault(message, "set SLIPWAY_HOME to a folder that can") from None


def note(folder: Path, pipeline: Pipeline, run: Run, flow: FlowRun | None = None) -> None:
    """Record on disk who holds the lock. A killed run leaves it behind: interrupted_runs.py."""
    holder = {"run_id": run.run_id, "pid": os.getpid(), "file": str(pipeline.file)}
    durable_files.move_folder_aside(folder / ".running")
    durable_files.write(
        folder / ".running", json.dumps({**holder, **(asdict(flow) if flow else {})}).encode()
    )


def longest_wait(deployment: DeploymentConfig) -> float:
    """Return for how many seconds to wait while the pipeline is busy."""
    return deployment.busy_timeout_seconds if deployment.when_busy == "wait" else 0.0


def _holder(folder: Path) -> str:
    holder = _noted(folder)
    return f" (run {holder[0]}, pid {holder[1]})" if holder else ""


def _noted(folder: Path) -> tuple[str, int] | None:
    """Return run and pid of the holder of the lock; None if what it noted is not there, or damaged."""
    try:
        running = json.loads((folder / ".running").read_text())
        return str(running["run_id"]), int(running["pid"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def verdict_json(verdict: Verdict) -> bytes:
    """Return the verdict as JSON."""
    # "NaN" and "Infinity" as strings: bare ones are no JSON, and other readers than Python's refuse them.
    return to_json(verdict, indent=2, inf_nan_mode="strings") + b"\n"


def write_verdict(verdict: Verdict, file: Path) -> None:
    """Write the verdict as JSON, atomically."""
    durable_files.write(file, verdict_json(verdict), synced=False)


def verdict_file(run: Run) -> Path:
    """Return where the run's verdict is written."""
    return run.folder / _VERDICT


def last_verdict(pipeline_name: str) -> dict[str, Any] | None:
    """Return the newest verdict of the pipeline, None where no run has ended."""
    files = [folder / _VERDICT for folder in reversed(run_order.oldest_first(pipeline_name, _VERDICT))]
    return next((found for found in map(_verdict_in, files) if found is not None), None)


def serving_since(pipeline_name: str, version: int) -> datetime | None:
    """Return when a run or a rollback last put the version into service; None if no verdict says so."""
    for folder in reversed(run_order.oldest_first(pipeline_name, _VERDICT)):
        file = folder / _VERDICT
        verdict = _verdict_in(file)
        if verdict and verdict.get("version") == version and verdict["outcome"] in ("deployed", "restored"):
            return datetime.fromtimestamp(file.stat().st_mtime, timezone.utc)
    return None


def verdict_of(pipeline_name: str, run_id: str) -> dict[str, Any] | None:
    """Return the verdict of a run; None where it has none, or a crash of the machine cut it short."""
    return _verdict_in(runs_folder(pipeline_name) / run_id / _VERDICT)


def _verdict_in(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text())
        if isinstance(found, dict) and "outcome" in found:
            return found
        problem = "it names no outcome"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        problem = str(error)
    _log.warning("%s: ignoring this verdict: %s", file, problem)
    return None


def run_under_way(pipeline_name: str) -> str | None:
    """Return which run of the pipeline is under way; None where none is.

    Looks at what the holder of the lock wrote, not at the lock: taking it, however shortly, could refuse
    a run that begins just then.
    """
    folder = runs_folder(pipeline_name)
    holder = _noted(folder)
    return _holder(folder).strip(" ()") if holder is not None and _is_running(holder[1]) else None


def _is_running(pid: int) -> bool:
    try:
        return pid > 0 and psutil.pid_exists(pid)
    except OverflowError:
        return False  # no pid: the file is damaged
