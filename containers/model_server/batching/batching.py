"""--enable_batching: runs of several callers become one, as the official server's BatchingSession has it.

Facts from tensorflow_serving/batching: batching_session.cc, batching_util.cc. Unlike there, a request that
cannot run with others, or whose batch has failed, is run alone: only what is wrong itself fails.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from model_server.base.status import Code, StatusError, from_exception, invalid_argument
from model_server.batching import batch_metrics, batch_queues
from model_server.batching.batch_queues import Queue, Task
from model_server.batching.batching_parameters import BatchingParameters
from model_server.tensorflow_c.tensors import Array

Run = Callable[[Mapping[str, Array], Sequence[str], "float | None"], list[Array]]
"""Servable.run: feeds and fetches by the names of tensors, and seconds."""


class BatchingSession:
    """Runs in the place of `run`, in the threads that all models share."""

    def __init__(self, run: Run, parameters: BatchingParameters) -> None:
        self._run = run
        self._parameters = parameters
        self._threads = batch_queues.shared_threads(parameters.num_batch_threads, parameters.thread_pool_name)
        self._queues: dict[tuple[tuple[str, ...], ...], Queue] = {}
        self._lock = threading.Lock()

    def run(
        self, feeds: Mapping[str, Array], fetches: Sequence[str], timeout_seconds: float | None
    ) -> list[Array]:
        """Wait for a batch, and return this request's rows of the fetched tensors.

        Raises StatusError: what Servable.run does, and that of a request which cannot be batched, of a full
        queue, and of a time that was over in the queue.
        """
        rows = _rows(feeds)
        if not rows:
            return self._run(feeds, fetches, timeout_seconds)
        if rows > self._parameters.max_batch_size:
            raise invalid_argument(
                f"Task size {rows} is larger than maximum input batch size {self._parameters.max_batch_size}"
            )
        names = sorted(set(fetches))
        tasks = self._queue(sorted(feeds), names).put(feeds, rows, timeout_seconds)
        batch_metrics.accepted(rows)
        parts = zip(*(task.answer.result() for task in tasks), strict=True)
        values = dict(zip(names, map(_concatenated, parts), strict=True))
        return [values[name] for name in fetches]

    def _queue(self, feeds: Sequence[str], fetches: Sequence[str]) -> Queue:
        """Return the one queue of what feeds and fetches these; an output_filter makes one of its own."""
        key = (tuple(feeds), tuple(fetches))
        with self._lock:
            if key not in self._queues:
                self._queues[key] = Queue(
                    self._parameters, self._threads, lambda tasks: self._answer(tasks, fetches)
                )
            return self._queues[key]

    def _answer(self, tasks: Sequence[Task], fetches: Sequence[str]) -> None:
        now = time.monotonic()
        groups: dict[tuple[Any, ...], list[Task]] = {}
        for task in tasks:
            batch_metrics.taken(now - task.queued, self._parameters.thread_pool_name)
            if task.deadline is not None and task.deadline <= now:
                task.answer.set_exception(
                    StatusError(
                        Code.RESOURCE_EXHAUSTED, "Run() timeout exceeded while waiting in batching queue"
                    )
                )
            else:
                groups.setdefault(self._kind(task), []).append(task)
        for group in groups.values():
            self._answer_together(group, fetches)

    def _kind(self, task: Task) -> tuple[Any, ...]:
        """Return what must be equal to share a run: types, and shapes but for rows; padded, only ranks."""
        feeds = sorted(task.feeds.items())
        if self._parameters.pad_variable_length_inputs:
            return tuple((array.dtype, array.ndim) for _, array in feeds)
        return tuple((array.dtype, array.shape[1:]) for _, array in feeds)

    def _answer_together(self, tasks: Sequence[Task], fetches: Sequence[str]) -> None:
        try:
            answers = self._rows_of_each(tasks, fetches)
        except Exception as raised:
            error = from_exception(raised)
            # The deadline of a batch is its latest: nobody waits for another run.
            if len(tasks) > 1 and error.code is not Code.DEADLINE_EXCEEDED:
                for task in tasks:
                    self._answer_together([task], fetches)
                return
            for task in tasks:
                task.answer.set_exception(StatusError(error.code, error.message))
            return
        for task, answer in zip(tasks, answers, strict=True):
            task.answer.set_result(answer)

    def _rows_of_each(self, tasks: Sequence[Task], fetches: Sequence[str]) -> list[list[Array]]:
        """Return what one run says to each task. Raises StatusError."""
        rows = sum(task.rows for task in tasks)
        size = self._parameters.run_size(rows)
        feeds = {name: _joined([task.feeds[name] for task in tasks], size - rows) for name in tasks[0].feeds}
        batch_metrics.run(size, size - rows if self._parameters.allowed_batch_sizes else None)
        outputs = self._run(feeds, fetches, _seconds_left(tasks))
        for output in outputs:
            _check_output(output, size)
        answers, start = [], 0
        for task in tasks:
            answers.append([output[start : start + task.rows] for output in outputs])
            start += task.rows
        return answers


def _rows(feeds: Mapping[str, Array]) -> int:
    """Return the size of the first dimension that all have. Raises StatusError."""
    if not feeds:
        raise invalid_argument("Batching Run() must have at least one input tensor")
    if any(not array.ndim for array in feeds.values()):
        raise invalid_argument("Batching Run() input tensors must have at least one dimension")
    sizes = {len(array) for array in feeds.values()}
    if len(sizes) > 1:
        raise invalid_argument("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop()


def _joined(arrays: Sequence[Array], more_rows: int) -> Array:
    """Return all rows; then, as often as asked, the first of the last array, a real row."""
    shape = tuple(max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True))
    padded = [_padded(array, (len(array), *shape)) for array in arrays]
    return _concatenated([*padded, *[padded[-1][:1]] * more_rows])


def _padded(array: Array, shape: tuple[int, ...]) -> Array:
    """Return the array in a larger shape, its first element wherever it has none."""
    if array.shape == shape:
        return array
    if not array.size:
        raise invalid_argument("a tensor without elements has nothing to be padded with")
    larger = np.full(shape, array.flat[0], array.dtype)
    larger[tuple(slice(size) for size in array.shape)] = array
    return larger


def _concatenated(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _check_output(output: Array, rows: int) -> None:
    if not output.ndim:
        raise StatusError(Code.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
    if len(output) != rows:
        raise StatusError(
            Code.FAILED_PRECONDITION,
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the "
            "input tensors",
        )


def _seconds_left(tasks: Sequence[Task]) -> float | None:
    """Return how long the last of those who asked still waits; None is for ever."""
    deadlines = [task.deadline for task in tasks if task.deadline is not None]
    if len(deadlines) < len(tasks):
        return None
    return max(0.0, max(deadlines) - time.monotonic())
