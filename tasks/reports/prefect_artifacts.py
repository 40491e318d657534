"""What the Prefect UI shows of a run besides its graph. A run never fails for what cannot be shown."""

from __future__ import annotations

import logging
import time
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TaskRunContext

from tasks.runs.run_records import Event

_log = logging.getLogger(__name__)
_SECONDS_BETWEEN_UPDATES = 2.0


def key(name: str) -> str:
    """Return `name` as Prefect takes it: lower-case letters, digits and dashes."""
    return name.replace("_", "-")


def show(name: str, markdown: str, description: str | None = None) -> None:
    """Have the markdown on the page of the run, and of the task in which this is called."""
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return  # a stage that is run alone belongs to no page
    try:
        create_markdown_artifact(markdown=markdown, key=key(name), description=description)
    except Exception as error:
        _log.warning("%s could not be shown in the Prefect UI: %s", name, error)


def tag(pipeline: str) -> None:
    """Have the flow run found by the pipeline's name, and as one of Slipway's; the tags that it has stay."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    tags = {*context.flow_run.tags, "slipway", pipeline}
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(context.flow_run.id, tags=tags)
    except Exception as error:
        _log.warning("the run is not tagged in the Prefect UI: %s", error)


class LiveTraining:
    """Keeps a progress artifact, `<pipeline>-training-progress`, in step with training."""

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline
        self._artifact: UUID | None = None
        self._told = float("-inf")
        self._given_up = False

    def watch(self, event: Event) -> None:
        """Take an event of the run; at most every two seconds the server is told."""
        step, most = event.progress.get("step"), event.progress.get("max_steps")
        if event.kind != "progress" or not isinstance(step, int) or not most or self._given_up:
            return
        if step < most and time.monotonic() - self._told < _SECONDS_BETWEEN_UPDATES:
            return
        try:
            self._tell(min(100.0, 100.0 * step / most), int(most))
        except Exception as error:
            self._given_up = True
            _log.warning("training progress is not shown in the Prefect UI: %s", error)
        self._told = time.monotonic()

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
