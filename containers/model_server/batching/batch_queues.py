"""Queues of requests, measured in rows, and the threads of all models that take them a batch at a time.

Facts from tensorflow/core/kernels/batching_util/shared_batch_scheduler.h. The last batch of a queue is
open: what comes joins it if it fits. A batch is due when it is full, when another has been opened behind
it, or when its first request has waited for batch_timeout_micros.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache

from model_server.base.status import Code, StatusError, from_exception
from model_server.batching.batching_parameters import BatchingParameters
from model_server.tensorflow_c.tensors import Array

_LONGEST_WAIT_SECONDS = 3600.0
_LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class Task:
    """What one caller asks, or the part of it that fits into a batch."""

    feeds: Mapping[str, Array]
    rows: int
    deadline: float | None
    """When its caller gives up (time.monotonic())."""
    queued: float = field(default_factory=time.monotonic)
    answer: Future[list[Array]] = field(default_factory=Future)


@dataclass
class _Batch:
    tasks: list[Task] = field(default_factory=list)
    rows: int = 0


class BatchThreads:
    """Threads that take what is due, the queues in turn."""

    def __init__(self, count: int, name: str) -> None:
        self.changed = threading.Condition()
        self._waiting: dict[Queue, None] = {}
        for index in range(count):
            threading.Thread(target=self._work, name=f"{name}-{index}", daemon=True).start()

    def look_at(self, queue: Queue) -> None:
        """Consider a queue that has something; `changed` is held."""
        self._waiting.setdefault(queue)
        self.changed.notify()

    def _work(self) -> None:
        while True:
            queue, tasks = self._take()
            _answer(queue, tasks)
            del queue, tasks  # what is unloaded meanwhile shall not stay in memory for this thread

    def _take(self) -> tuple[Queue, list[Task]]:
        with self.changed:
            while True:
                now = time.monotonic()
                due = next((queue for queue in self._waiting if queue.due <= now), None)
                if due:
                    return due, self._taken(due)
                soonest = min((queue.due for queue in self._waiting), default=now + _LONGEST_WAIT_SECONDS)
                self.changed.wait(min(soonest - now, _LONGEST_WAIT_SECONDS))

    def _taken(self, queue: Queue) -> list[Task]:
        tasks = queue.take()
        del self._waiting[queue]
        if queue.is_waiting:
            self._waiting[queue] = None
        if self._waiting:
            self.changed.notify()  # this thread is busy now: another has to watch when they are due
        return tasks


class Queue:
    """What waits for runs that feed and fetch the same tensors."""

    def __init__(
        self,
        parameters: BatchingParameters,
        threads: BatchThreads,
        answer: Callable[[Sequence[Task]], None],
    ) -> None:
        """`answer` gives every task of a batch its result or its error."""
        self.answer = answer
        self._parameters = parameters
        self._threads = threads
        self._batches: deque[_Batch] = deque()

    @property
    def is_waiting(self) -> bool:
        """Whether there is a batch."""
        return bool(self._batches)

    @property
    def due(self) -> float:
        """When the first batch may be taken (time.monotonic()); there is one."""
        first = self._batches[0]
        if len(self._batches) > 1 or first.rows >= self._parameters.largest_run:
            return 0.0
        return first.tasks[0].queued + self._parameters.batch_timeout_micros / 1e6

    def put(self, feeds: Mapping[str, Array], rows: int, timeout_seconds: float | None) -> list[Task]:
        """Return the task that the request has become, or its parts in order.

        Raises StatusError where the queue is full.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        with self._threads.changed:
            tasks, start = [], 0
            for size in self._sizes(rows):
                part = {name: array[start : start + size] for name, array in feeds.items()}
                tasks.append(Task(part, size, deadline))
                self._append(tasks[-1])
                start += size
            return tasks

    def take(self) -> list[Task]:
        """Return the first batch, which waits no more."""
        return self._batches.popleft().tasks

    def _append(self, task: Task) -> None:
        if not self._batches or self._room < task.rows:
            self._batches.append(_Batch())
        self._batches[-1].tasks.append(task)
        self._batches[-1].rows += task.rows
        self._threads.look_at(self)

    @property
    def _room(self) -> int:
        """Rows that the open batch still takes."""
        return self._parameters.largest_run - (self._batches[-1].rows if self._batches else 0)

    def _sizes(self, rows: int) -> list[int]:
        """Cut a request into what fills the open batch and what goes into new ones, where that is allowed."""
        given, first = self._parameters, self._room
        if rows <= first:
            return [rows]
        enqueued = max(1, len(self._batches))  # in the official server there always is an open one
        new_rows = max(0, given.max_enqueued_batches - enqueued) * given.largest_run
        if not given.enable_large_batch_splitting:
            first = 0
        if rows > first + new_rows:
            raise StatusError(
                Code.UNAVAILABLE,
                "The batch scheduling queue to which this task was submitted is full; currently "
                f"{enqueued} batches enqueued and max_enqueued_batches is {given.max_enqueued_batches}",
            )
        full, rest = divmod(rows - first, given.largest_run)
        return [size for size in (first, *[given.largest_run] * full, rest) if size]


def _answer(queue: Queue, tasks: Sequence[Task]) -> None:
    """Leave no task without an answer, whatever happens: its caller waits for it."""
    try:
        queue.answer(tasks)
    except Exception as error:
        _LOG.exception("a batch failed")
        for task in tasks:
            if not task.answer.done():
                task.answer.set_exception(from_exception(error))


@cache
def shared_threads(count: int, name: str) -> BatchThreads:
    """Return the threads of this process, which all models share."""
    return BatchThreads(count, name)
