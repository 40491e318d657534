"""Predict, Classify and Regress as they come in from many callers: those that wait share one graph run.

Nobody is kept waiting for others to come: a run takes what is there when it begins. What cannot be answered
in this way, a request that is out of the ordinary or one of a batch that failed, is asked alone, by the
handlers of servicers.py, which also have all error texts.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import model_pb2

from model_server.base.status import Code, StatusError
from model_server.models.servable_store import Loaded, ServableStore
from model_server.observability import metrics, request_log
from model_server.requests import guards, plans, quick_answers, quick_requests, thread_pools
from model_server.requests.plans import Plan
from model_server.tensorflow_c import tf_tensors
from model_server.tensorflow_c.tensors import Array
from model_server.tensorflow_c.tf_session import RunOptions
from model_server.tensorflow_c.tf_tensors import Raw, Strings

_LOG = logging.getLogger(__name__)
_MOST_ROWS = 1024  # a longer batch costs as much a row, and its first rows wait for the last
_REMEMBERED_SPECS = 1024
_CORES = len(os.sched_getaffinity(0))
_LARGE_BYTES = 256 * 1024
_LONGEST_TIMEOUT_MILLISECONDS = 2**31 - 1
_RETRY_MILLISECONDS = 1000


class Call(Protocol):
    """A request of a client, as the transport hands it over; also the context of servicers.py's handlers."""

    method: str
    message: bytes
    started_ns: int

    def time_remaining(self) -> float | None:
        """Return the seconds that the client still waits; None is for ever."""

    def answer(self, response: bytes) -> None:
        """Send what set_code() has said before, or OK with the response."""

    def fail(self, code: Code, message: str, retry_milliseconds: int | None = None) -> None:
        """Send a status, and when to try again."""


@dataclass(eq=False)
class _Question:
    call: Call
    loaded: Loaded
    values: Sequence[Array | Strings]
    rows: int
    kind: tuple[Any, ...]
    """What must be equal for two questions of a plan to share a run: dtypes, and shapes without rows.

    The call itself for a question that shares none.
    """


class _Alone(StatusError):
    """The request is to be run alone.

    A new instance each time: one that is raised again and again collects the tracebacks of all times.
    """

    def __init__(self) -> None:
        super().__init__(Code.UNKNOWN, "to be run alone")


Handler = Callable[[bytes, Any], bytes]


class Inference:
    """Collects calls with accept(), and answers them with run(), both in the transport's thread."""

    def __init__(
        self,
        store: ServableStore,
        handlers: Mapping[str, Handler],
        threads: int,
        *,
        check_method_names: bool,
        sharing: str,
    ) -> None:
        self._store = store
        self._handlers = handlers
        self._check_method_names = check_method_names
        self._sharing = sharing
        self._pool = thread_pools.started(threads, "inference")
        self._specs: dict[bytes, model_pb2.ModelSpec] = {}
        self._ready: dict[Plan, None] = {}
        self._lock = threading.Lock()
        self._inline = RunOptions(inline=True)

    @property
    def is_waiting(self) -> bool:
        """Whether there is something for run() to do."""
        return bool(self._ready)

    def accept(self, call: Call) -> None:
        """Take a call in; run() will see to it, or a thread of its own already does."""
        if len(call.message) > _LARGE_BYTES:
            self._pool.submit(self._accept_large, call)
            return
        try:
            plan, question = self._question(call)
        except Exception as error:
            if not isinstance(error, StatusError):
                guards.caught("reading a request")  # the full message decides what it is
            self._pool.submit(self._ask_alone, call)
            return
        with self._lock:
            plan.waiting.append(question)
        self._ready[plan] = None

    def _accept_large(self, call: Call) -> None:
        """Do as accept() and run(), in a thread of the pool: to read the message takes long already."""
        try:
            plan, question = self._question(call)
        except Exception as error:
            if not isinstance(error, StatusError):
                guards.caught("reading a request")
            self._ask_alone(call)
            return
        with self._lock:
            plan.waiting.append(question)
        self._run_elsewhere(plan)

    def shed(self, call: Call, why: str) -> None:
        """Send a call away, with the hint that gRPC's retry policy reads."""
        metrics.record((call.method, "GRPC", "", 0, ""), Code.UNAVAILABLE, call.started_ns)
        text = f"The server is overloaded: {why} (MODEL_SERVER_MAX_QUEUED_REQUESTS, _MEBIBYTES)"
        call.fail(Code.UNAVAILABLE, text, _RETRY_MILLISECONDS)

    def run(self) -> None:
        """Run what has been accepted: what is quick in this thread, the rest in others."""
        ready, self._ready = self._ready, {}
        for plan in ready:
            waiting = plan.waiting
            sizes = [_size(waiting)] if plan.is_shared else [_size([each]) for each in waiting]
            if not plan.running and plan.is_quick(*sizes):
                self._run(plan, self._take(plan))
            else:
                self._run_elsewhere(plan)

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False)

    def _question(self, call: Call) -> tuple[Plan, _Question]:
        """Read a call. Raises StatusError where it has to be asked alone."""
        inputs: Mapping[str, Array | Strings]
        output_filter: tuple[str, ...] = ()
        if call.method == "Predict":
            asked = quick_requests.read_predict(call.message)
            if asked is None:
                raise _Alone
            spec, inputs, output_filter = asked.spec, asked.inputs, asked.output_filter
        else:
            given = quick_requests.read_examples(call.message)
            if given is None:
                raise _Alone
            spec, inputs = given.spec, {"inputs": Strings(given.examples)}
        loaded = self._store.acquire(self._spec(spec))
        try:
            plan = self._plan(call.method, loaded, spec, output_filter)
            values = plan.values(inputs) if plan else None
            rows = _rows(values) if values else 0
            if plan is None or values is None or not rows:
                raise _Alone
            arrays = [value for value in values if isinstance(value, np.ndarray)]
            is_shared = plan.can_share(values)
            kind = tuple((each.dtype, each.shape[1:]) for each in arrays) if is_shared else (call,)
            return plan, _Question(call, loaded, values, rows, kind)
        except BaseException:
            self._store.release(loaded)
            raise

    def _spec(self, serialized: bytes) -> model_pb2.ModelSpec:
        spec = self._specs.get(serialized)
        if spec is None:
            try:
                spec = model_pb2.ModelSpec.FromString(serialized)
            except DecodeError:
                raise _Alone from None
            if len(self._specs) >= _REMEMBERED_SPECS:
                self._specs.clear()
            self._specs[serialized] = spec
        return spec

    def _plan(self, method: str, loaded: Loaded, spec: bytes, output_filter: tuple[str, ...]) -> Plan | None:
        key = (method, spec, output_filter)
        try:
            known: Plan | None = loaded.prepared[key]
            return known
        except KeyError:
            pass
        plan = plans.prepare(
            method, loaded.servable, self._spec(spec), output_filter, self._check_method_names, self._sharing
        )
        # "the latest" and "version 5" are the same plan while 5 is the latest.
        same = (method, plan.model_spec, output_filter) if plan else None
        plan = loaded.prepared.setdefault(same, plan) if same else None
        if len(loaded.prepared) < _REMEMBERED_SPECS:
            loaded.prepared[key] = plan
        return plan

    def _take(self, plan: Plan) -> list[_Question]:
        with self._lock:
            taken, plan.waiting = plan.waiting, []
            return taken

    def _run_elsewhere(self, plan: Plan) -> None:
        with self._lock:
            if not plan.waiting or plan.running >= _CORES:
                return  # the run that ends next takes it
            plan.running += 1
        self._pool.submit(self._run_until_empty, plan)

    def _run_until_empty(self, plan: Plan) -> None:
        while True:
            with self._lock:
                taken, plan.waiting = plan.waiting, []
                if not taken:
                    plan.running -= 1
                    return
            self._run(plan, taken)

    def _run(self, plan: Plan, questions: Sequence[_Question]) -> None:
        for chunk in self._chunks(questions):
            self._run_together(plan, chunk)

    @staticmethod
    def _chunks(questions: Sequence[_Question]) -> list[list[_Question]]:
        """Group what may share a run, in the order of arrival."""
        if len(questions) == 1 and questions[0].rows <= _MOST_ROWS:
            return [list(questions)]
        chunks: list[list[_Question]] = []
        latest: dict[tuple[Any, ...], tuple[list[_Question], int]] = {}
        for question in questions:
            chunk, rows = latest.get(question.kind, ([], 0))
            if not chunk or rows + question.rows > _MOST_ROWS:
                chunk, rows = [], 0
                chunks.append(chunk)
            chunk.append(question)
            latest[question.kind] = (chunk, rows + question.rows)
        return chunks

    def _run_together(self, plan: Plan, chunk: Sequence[_Question]) -> None:
        rows = [question.rows for question in chunk]
        started = time.perf_counter_ns()
        try:
            outputs = self._outputs(plan, chunk)
            took = time.perf_counter_ns() - started
            answers = quick_answers.with_spec(plan.write(outputs, rows), plan.model_spec)
        except Exception:  # each alone will get an answer, or the words for what is wrong
            for question in chunk:
                self._store.release(question.loaded)
                self._pool.submit(self._ask_alone, question.call)
            return
        plan.took(took / 1e9, *_size(chunk))
        key = (plan.method, "GRPC", plan.model, plan.servable.version, plan.signature)
        counts_examples = plan.method != "Predict"
        for question, answer in zip(chunk, answers, strict=True):
            call = question.call
            try:
                metrics.record(key, 0, call.started_ns, took, question.rows * counts_examples)
                if request_log.LOGS.active:
                    request_log.LOGS.offer(plan.method, plan.model, call.message, answer)
                call.answer(answer)
            except Exception:  # the others of the batch are still to be answered
                guards.caught("answering a call")
            self._store.release(question.loaded)

    def _outputs(self, plan: Plan, chunk: Sequence[_Question]) -> list[Raw]:
        options = self._inline if plan.is_quick(_size(chunk)) else _with_timeout(chunk)
        together = [_joined(values) for values in zip(*(question.values for question in chunk), strict=True)]
        session = plan.servable.session
        return session.run_to(tf_tensors.to_raw, plan.feeds, together, plan.fetches, options)

    def _ask_alone(self, call: Call) -> None:
        try:
            remaining = call.time_remaining()
            if remaining is not None and remaining <= 0:
                metrics.record((call.method, "GRPC", "", 0, ""), Code.DEADLINE_EXCEEDED, call.started_ns)
                call.fail(Code.DEADLINE_EXCEEDED, "Deadline Exceeded while waiting in the server")
            else:
                call.answer(self._handlers[call.method](call.message, call))
        except Exception:
            _LOG.exception("%s failed", call.method)
            call.fail(Code.INTERNAL, "the server failed")


def _size(questions: Sequence[_Question]) -> tuple[int, int]:
    """Return rows and bytes."""
    rows = sum([question.rows for question in questions])
    return rows, sum([len(question.call.message) for question in questions])


def _rows(values: Sequence[Array | Strings]) -> int:
    """Return the size of the first dimension that all have; 0 where they do not, or have no elements."""
    sizes = {
        len(value.values) if isinstance(value, Strings) else value.size and len(value) for value in values
    }
    return sizes.pop() if len(sizes) == 1 else 0


def _joined(values: Sequence[Array | Strings]) -> Array | Strings:
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, Strings):
        return Strings([each for value in values for each in value.values])  # type: ignore[union-attr]
    return np.concatenate(values)  # type: ignore[arg-type]


def _with_timeout(chunk: Sequence[_Question]) -> RunOptions | None:
    """Let a run go on for as long as one of those who asked waits."""
    longest = 0.0
    for question in chunk:
        remaining = question.call.time_remaining()
        if remaining is None:
            return None
        longest = max(longest, remaining)
    milliseconds = max(1, math.ceil(longest * 1000)) if longest < _LONGEST_TIMEOUT_MILLISECONDS else 0
    return RunOptions(timeout_milliseconds=min(milliseconds, _LONGEST_TIMEOUT_MILLISECONDS))
