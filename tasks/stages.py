"""What every stage is: a Prefect task whose time, outcome and proof are noted in the run's record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE

from tasks.run_records import current_record

P = ParamSpec("P")
R = TypeVar("R")


def stage(name: str, run_name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a function the stage `name`; `run_name` is what a person reads in the Prefect UI.

    `run_name` may hold the function's parameters, as Prefect's `task_run_name` does. Nothing is cached:
    a stage that was skipped because its inputs look like last night's would silently ship nothing.
    """

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        @wraps(function)
        def recorded(*args: P.args, **kwargs: P.kwargs) -> R:
            record = current_record()
            with record.stage(name) as entry:
                artifact = function(*args, **kwargs)
                record.note(entry, artifact)
            return artifact

        return task(name=name, task_run_name=run_name, cache_policy=NO_CACHE)(recorded)

    return decorate


def report(progress: Mapping[str, Any]) -> None:
    """Show progress of the current stage: `{"step": 200, "max_steps": 1000, "loss": 0.4, …}`."""
    current_record().progress(progress)
