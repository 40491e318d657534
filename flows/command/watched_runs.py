"""A flow run somewhere else, followed to its end: its log, line by line, and its state."""

from __future__ import annotations

import itertools
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import FrameType
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterTimestamp
from prefect.client.schemas.objects import FlowRun, Log, State
from prefect.states import Cancelling
from rich.console import Console
from rich.text import Text

from configs.loading.errors import SlipwayError

_POLL_SECONDS = 0.5
_LOG_PAGE = 200  # the most that Prefect's API gives at once
_STYLES = {"DEBUG": "dim", "WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red"}
# Loggers send what they hold every 2 s, and a worker's last lines come after the run has ended.
_LATE_LOG_SECONDS = 3.0
# Prefect's workers give a cancelled flow 30 s, and look for one every 10 s.
_CANCELLING_SECONDS = 180.0


class NotTaken(SlipwayError):
    """No worker took the run in time; it is cancelled."""


class StoppedWatching(SlipwayError):
    """A signal ended the watching; the run goes on, or did not end in time after it was cancelled."""


@dataclass
class WatchedRun:
    """A flow run, and what was shown of it so far."""

    client: SyncPrefectClient
    id: UUID
    console: Console
    cancel_on_signal: bool = False
    _signals: int = 0
    _cancelled_at: float | None = None
    _shown: set[UUID] = field(default_factory=set)
    _newest: datetime | None = None

    def until_its_end(self, start_timeout_seconds: float) -> State[object]:
        """Print its log until it has ended, and return its final state.

        Raises NotTaken, and cancels the run, where none takes it in time; StoppedWatching at a signal
        (SIGTERM, SIGINT), unless that is to cancel the run: then only at the second one.
        """
        taken_by = time.monotonic() + start_timeout_seconds
        with self._told_of_signals():
            while not (state := self._look()).is_final():
                self._obey_signals()
                if _waits_for_a_worker(state) and time.monotonic() > taken_by:
                    self._give_up(start_timeout_seconds)
                time.sleep(_POLL_SECONDS)
            self._show_late_lines()
        return state

    def _look(self) -> State[object]:
        self._show_log()
        run: FlowRun = self.client.read_flow_run(self.id)
        if run.state is None:
            raise SlipwayError(f"flow run {self.id} has no state", "look at it in the Prefect UI")
        return run.state

    def _show_log(self) -> None:
        """Print lines that were not printed yet; those of a worker and a flow may arrive out of order."""
        since = LogFilterTimestamp(after_=self._newest - timedelta(seconds=30)) if self._newest else None
        chosen = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[self.id]), timestamp=since)
        for offset in itertools.count(0, _LOG_PAGE):
            lines = self.client.read_logs(chosen, limit=_LOG_PAGE, offset=offset)
            for line in lines:
                self._show(line)
            if len(lines) < _LOG_PAGE:
                return

    def _show(self, line: Log) -> None:
        if line.id in self._shown:
            return
        self._shown.add(line.id)
        self._newest = max(line.timestamp, self._newest or line.timestamp)
        level = logging.getLevelName(line.level)
        told = f"{line.timestamp.astimezone():%H:%M:%S}  {level:<7}  {line.message}"
        self.console.print(Text(told, style=_STYLES.get(level, "")), soft_wrap=True)

    def _show_late_lines(self) -> None:
        ends = time.monotonic() + _LATE_LOG_SECONDS
        while time.monotonic() < ends:
            time.sleep(_POLL_SECONDS)
            self._show_log()

    @contextmanager
    def _told_of_signals(self) -> Iterator[None]:
        """Count SIGTERM and SIGINT in place of what they would do."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._note_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1

    def _obey_signals(self) -> None:
        if self._signals and self.cancel_on_signal and self._cancelled_at is None:
            self._cancelled_at = time.monotonic()
            self.console.print("signal received: the run is being cancelled", highlight=False)
            self.client.set_flow_run_state(self.id, Cancelling())
        elif self._signals > int(self.cancel_on_signal):
            raise StoppedWatching("signal received: no longer watching", "the run goes on without you")
        elif self._cancelled_at and time.monotonic() > self._cancelled_at + _CANCELLING_SECONDS:
            said = f"the run did not end within {_CANCELLING_SECONDS:g} s after it was cancelled"
            raise StoppedWatching(said, "is its worker alive? It is the worker that ends it")

    def _give_up(self, seconds: float) -> None:
        self.client.set_flow_run_state(self.id, Cancelling())
        raise NotTaken(
            f"no worker took the run within {seconds:g} s; it is cancelled", _who_would(self.client, self.id)
        )


def _waits_for_a_worker(state: State[object]) -> bool:
    return state.is_scheduled() and state.name in ("Scheduled", "Late")


def _who_would(client: SyncPrefectClient, flow_run: UUID) -> str:
    """Return which work pool the run waits in, and whether it has a live worker."""
    pool = client.read_flow_run(flow_run).work_pool_name
    if pool is None:
        return "its deployment has no work pool: deploy it with one"
    workers = client.read_workers_for_work_pool(pool)
    online = [worker.name for worker in workers if worker.status == "ONLINE"]
    if online:
        return f"work pool {pool} has workers ({', '.join(online)}): is it, or its queue, paused or full?"
    return f"work pool {pool} has no worker online: prefect worker start --pool {pool}"
