"""What the Prefect UI shows of a run besides its graph. A run never fails for what cannot be shown.

Nor does it wait for it: a server that is gone is asked again for a minute by Prefect's client, which here
would hold up training, or a deploy with its lock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TaskRunContext
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from tasks.runs.run_records import Event

_log = logging.getLogger(__name__)
_SECONDS_BETWEEN_UPDATES = 2.0
_SECONDS_AFTER_A_FAILURE = 30.0
_RETRIES_OF_A_PAGE = 2  # about 6 s: SQLite may be busy


def key(name: str) -> str:
    """Return `name` as Prefect takes it: lower-case letters, digits and dashes."""
    return name.replace("_", "-")


def show(name: str, markdown: str, description: str | None = None) -> None:
    """Create a markdown artifact for the flow run and the current task run."""
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return  # a stage that is run alone belongs to no page
    try:
        with _asked_again(_RETRIES_OF_A_PAGE):
            create_markdown_artifact(markdown=markdown, key=key(name), description=description)
    except Exception as error:
        _log.warning("%s could not be shown in the Prefect UI: %s", name, error)


def tag(pipeline: str) -> None:
    """Tag the flow run with `slipway` and the pipeline's name; existing tags stay."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    tags = {*context.flow_run.tags, "slipway", pipeline}
    try:
        with _asked_again(_RETRIES_OF_A_PAGE), get_client(sync_client=True) as client:
            client.update_flow_run(context.flow_run.id, tags=tags)
    except Exception as error:
        _log.warning("the run is not tagged in the Prefect UI: %s", error)


def add_to_name(reason: str) -> None:
    """Append to the flow run's name why nothing came of it, so that the list of runs says it."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    try:
        with _asked_again(_RETRIES_OF_A_PAGE), get_client(sync_client=True) as client:
            client.update_flow_run(context.flow_run.id, name=f"{context.flow_run.name}: {reason}")
    except Exception as error:
        _log.warning("the run's name in the Prefect UI does not say how it ended: %s", error)


@contextmanager
def _asked_again(times: int) -> Iterator[None]:
    """Retry requests to a server that is busy or unreachable, after 2 s, 4 s, …"""
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: times}):
        yield


class LiveTraining:
    """Keeps a progress artifact, `<pipeline>-training-progress`, in step with training."""

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline
        self._artifact: UUID | None = None
        self._next = float("-inf")
        self._failed = False

    def watch(self, event: Event) -> None:
        """Handle an event of the run; update Prefect at most every two seconds."""
        step, most = event.progress.get("step"), event.progress.get("max_steps")
        if event.kind != "progress" or not isinstance(step, int) or not most:
            return
        if step < most and time.monotonic() < self._next:
            return
        pause = _SECONDS_BETWEEN_UPDATES
        try:
            with _asked_again(0):
                self._tell(min(100.0, 100.0 * step / most), int(most))
        except Exception as error:
            pause = _SECONDS_AFTER_A_FAILURE
            self._warn(error)
        self._next = time.monotonic() + pause

    def _warn(self, error: Exception) -> None:
        if not self._failed:
            _log.warning("training progress is not shown in the Prefect UI: %s", error)
        self._failed = True

    def _tell(self, percent: float, max_steps: int) -> None:
        if self._artifact is not None:
            update_progress_artifact(self._artifact, percent)
            return
        made = create_progress_artifact(
            progress=percent,
            key=key(f"{self._pipeline}-training-progress"),
            description=f"Training of {self._pipeline}, in percent of {max_steps:,} steps",
        )
        assert isinstance(made, UUID)
        self._artifact = made
