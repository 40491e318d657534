"""What every stage is: a Prefect task whose time, outcome and proof are noted in the run's record."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar, get_type_hints

from prefect import Task, get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext
from prefect.utilities.annotations import opaque

from tasks.core.errors import disk_full, is_disk_full
from tasks.runs import progress_lines
from tasks.runs.run_records import current_record

_last_logged = 0.0

P = ParamSpec("P")
R = TypeVar("R")


class Stage(Task[P, R]):
    """A Prefect task whose arguments Prefect links to the tasks they came from, and does not look into.

    Prefect walks every argument for futures, by `dict()` of each pydantic model. That takes a slice with a
    field `keys` (a crossed column's) for a mapping and fails; and no argument of a stage holds a future.
    """

    def __init__(self, function: Callable[P, R], **options: Any) -> None:
        super().__init__(function, **options)
        self._options = options

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the stage in the current flow run."""
        unwalked: Callable[..., Any] = super().__call__
        return unwalked(*map(opaque, args), **{name: opaque(value) for name, value in kwargs.items()})

    def with_options(self, **options: Any) -> Stage[P, R]:
        """Return a copy with these options; Prefect's own would be a plain Task."""
        return Stage(self.fn, **{**self._options, **options})


def stage(name: str, run_name: str, *, resumable: bool = False) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a function the stage `name`; `run_name` is what a person reads in the Prefect UI.

    `run_name` may hold the function's parameters, as Prefect's `task_run_name` does. Nothing is cached:
    a stage that was skipped because its inputs look like last night's would silently ship nothing. Only
    a run that is resumed takes what a `resumable` stage of its own came to before.
    """

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        @wraps(function)
        def recorded(*args: P.args, **kwargs: P.kwargs) -> R:
            record = current_record()
            with record.stage(name) as entry:
                kept = record.finished if resumable else None
                before = kept.recall(name, get_type_hints(function)["return"]) if kept else None
                with _full_disk_told():
                    artifact: R = before if before is not None else function(*args, **kwargs)
                    record.note(entry, artifact)
                    if before is not None:
                        entry.summary = f"from before: {entry.summary}"
                    elif kept is not None:
                        kept.keep(name, artifact)
            get_run_logger().info(entry.summary)
            return artifact

        return Stage(recorded, name=name, task_run_name=run_name, cache_policy=NO_CACHE)

    return decorate


@contextmanager
def _full_disk_told() -> Iterator[None]:
    """Raise EnvironmentFault where the block finds a disk full; other errors pass as they are."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise disk_full(error.filename or "this machine", str(error.strerror)) from error


def report(progress: Mapping[str, Any]) -> None:
    """Show progress of the current stage: `{"step": 200, "max_steps": 1000, "loss": 0.4, …}`.

    Whoever watches the run sees all of it; the run's log gets a line every 30 s, every message that is
    `logged`, and every line of a log that has a `level`.
    """
    global _last_logged
    current_record().progress(progress)
    if "level" in progress:
        log(progress["level"], progress["message"])
    elif progress.get("logged"):
        get_run_logger().info(str(progress["message"]))
    elif time.monotonic() - _last_logged >= progress_lines.LOG_EVERY_SECONDS:
        _last_logged = time.monotonic()
        get_run_logger().info(progress_lines.line(progress))


def log(level: int, line: str) -> None:
    """Put a line of another program's log into the run's log."""
    _logger().log(level, line)


def _logger() -> Any:
    """Return the run's logger; where a stage is run alone, this module's."""
    in_run = FlowRunContext.get() or TaskRunContext.get()
    return get_run_logger() if in_run else logging.getLogger(__name__)
