"""grpc's server with another loop: one thread takes what has arrived, all of it, before anything is run.

grpc's own loop gives each request to a thread of a pool, which costs several times what this server's
whole answer does, and lets nobody see what is waiting. This loop drains gRPC's completion queue, hands
the calls of some methods to `Inference`, and leaves all others, ports, TLS, health watches and shutdown to
grpc's own code. That needs names of grpc/_server.py and of grpc's Cython module that are private, all of
them in this file; requirements.lock pins the version, and start() looks whether they are as expected.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import grpc
from grpc import _server
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from model_server.base.status import Code, truncated
from model_server.requests import guards
from model_server.requests.inference import Inference

_LOG = logging.getLogger(__name__)
_NO_FLAGS = 0
_HEARTBEAT_SECONDS = 0.5
_MUTE_SECONDS = 5.0
_EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h
_MOST_WAITING = 64
_PRIVATE = (
    "_REQUEST_CALL_TAG", "_ServerStage", "_request_call", "_process_event_and_continue", "_stop_serving",
)  # fmt: skip
_STATE = ("lock", "rpc_states", "due", "stage", "server", "completion_queue", "generic_handlers")


class Unexpected(Exception):
    """The installed grpcio is not built as this module needs it."""


class Call:
    """One call of a unary method: a Call of inference.py, and an event's tag in grpc's sense."""

    __slots__ = (
        "_call", "_code", "_deadline", "_details", "is_answered", "is_read", "message", "method",
        "started_ns",
    )  # fmt: skip

    def __init__(self, event: Any, method: str) -> None:
        self.method = method
        self.message = b""
        self.started_ns = time.perf_counter_ns()
        self.is_read = self.is_answered = False
        self._call = event.call
        self._deadline = event.call_details.deadline
        self._code = 0
        self._details = b""

    def __call__(self, _event: Any) -> tuple[Any, tuple[()]]:
        """Say to grpc's own loop that the call has ended."""
        return self, ()

    def read(self) -> None:
        """Ask for the message; an event with this tag follows."""
        self._call.start_server_batch((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), self)

    def time_remaining(self) -> float | None:
        """Return the seconds that the client still waits."""
        return max(0.0, float(self._deadline) - time.time()) if self._deadline else None

    def set_code(self, code: grpc.StatusCode) -> None:
        """Say how the call ends."""
        self._code = code.value[0]

    def set_details(self, details: str) -> None:
        """Say why."""
        self._details = details.encode()

    def answer(self, response: bytes) -> None:
        """Send the response, or the status that was set."""
        if self._code:
            self._finish((), None)
        else:
            self._finish((cygrpc.SendMessageOperation(response, _NO_FLAGS),), None)

    def fail(self, code: Code, message: str, retry_milliseconds: int | None = None) -> None:
        """Send a status, and when to try again."""
        self._code, self._details = int(code), truncated(message).encode()
        trailing = (("grpc-retry-pushback-ms", str(retry_milliseconds)),) if retry_milliseconds else None
        self._finish((), trailing)

    def _finish(self, message: tuple[Any, ...], trailing: Any) -> None:
        if self.is_answered:  # by the guard, while a thread still worked on it
            return
        self.is_answered = True
        self._call.start_server_batch(
            (
                cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),
                *message,
                cygrpc.SendStatusFromServerOperation(trailing, self._code, self._details, _NO_FLAGS),
                cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),
            ),
            self,
        )


class GrpcLoop:
    """Serves a grpc.Server whose handlers and ports are there, and which was not started."""

    def __init__(
        self,
        server: grpc.Server,
        methods: Mapping[str, str],
        inference: Inference,
        *,
        most_held: float,
        most_held_bytes: float,
    ) -> None:
        """`methods` are those for `inference`: their paths, and the names that it knows them by.

        What comes in while `most_held` requests or as many bytes of them are unanswered is sent away.
        """
        self._methods = methods
        self._inference = inference
        self._state = _checked_state(server)
        self._held = self._held_bytes = 0
        self._most_held, self._most_held_bytes = most_held, most_held_bytes
        self._turned = time.monotonic()

    @property
    def is_turning(self) -> bool:
        """Return whether the thread has taken an event, or found none, within the last seconds."""
        return time.monotonic() - self._turned < _MUTE_SECONDS

    def start(self) -> None:
        """Answer from now on, in a thread; the grpc.Server's stop() stops it."""
        state = self._state
        with state.lock:
            state.server.start()
            state.stage = _server._ServerStage.STARTED
            _server._request_call(state)
        threading.Thread(target=self._serve, name="grpc", daemon=True).start()

    def _serve(self) -> None:
        try:
            self._turn()
        except BaseException:
            _LOG.critical("the gRPC loop has ended: so does the process", exc_info=True)
            logging.shutdown()
            os._exit(_EXIT_CODE)  # alive and mute, no supervisor would replace it

    def _turn(self) -> None:
        """Take events until the server has stopped. What one of them raises is that call's failure only."""
        poll, inference = self._state.completion_queue.poll, self._inference
        waiting, goes_on = 0, True
        while goes_on:
            event = poll(0) if waiting else poll(time.time() + _HEARTBEAT_SECONDS)
            self._turned = time.monotonic()
            try:
                if event.completion_type == cygrpc.CompletionType.queue_timeout:
                    waiting = 0
                    inference.run()
                elif type(event.tag) is Call:
                    goes_on = self._go_on(event.tag, event)
                    waiting += inference.is_waiting
                else:
                    goes_on = self._begin(event)
                if waiting >= _MOST_WAITING:
                    waiting = 0
                    inference.run()
            except Exception:
                guards.caught("the gRPC loop")
                self._give_up(event)
            # Here, not at the next assignment: an event keeps its call alive.
            event = None

    def _give_up(self, event: Any) -> None:
        """Fail the call of an event that could not be handled, and keep taking new ones."""
        try:
            if type(event.tag) is Call:
                event.tag.fail(Code.INTERNAL, "the server failed")
            elif event.tag is _server._REQUEST_CALL_TAG:
                state = self._state
                with state.lock:
                    if event.tag not in state.due and state.stage is _server._ServerStage.STARTED:
                        _server._request_call(state)
        except Exception:
            guards.caught("ending a call")
            with self._state.lock:
                self._state.rpc_states.discard(event.tag)

    def _begin(self, event: Any) -> bool:
        state = self._state
        if event.tag is _server._REQUEST_CALL_TAG and event.success:
            method = self._methods.get(_text(event.call_details.method))
            if method is not None and state.stage is _server._ServerStage.STARTED:
                call = Call(event, method)
                with state.lock:
                    state.due.discard(event.tag)
                    state.rpc_states.add(call)
                    _server._request_call(state)
                call.read()
                return True
        return bool(_server._process_event_and_continue(state, event))

    def _go_on(self, call: Call, event: Any) -> bool:
        if call.is_read:  # and so it has ended
            self._held -= 1
            self._held_bytes -= len(call.message)
            with self._state.lock:
                self._state.rpc_states.discard(call)
                return not _server._stop_serving(self._state)
        call.is_read = True
        message = event.batch_operations[0].message()
        self._held += 1
        if message is None:
            call.fail(Code.CANCELLED, "cancelled by the client")  # which nobody reads
            return True
        call.message = message
        self._held_bytes += len(message)
        # One larger than the whole bound is taken when it is alone.
        if self._held > self._most_held or (self._held_bytes > self._most_held_bytes and self._held > 1):
            self._inference.shed(call, f"{self._held} requests of {self._held_bytes} bytes are waiting")
        else:
            self._inference.accept(call)
        return True


def _text(method: bytes | str) -> str:
    # One that is not UTF-8 is no method of ours: grpc's own code refuses it.
    return method.decode("utf-8", "replace") if isinstance(method, bytes) else method


def _checked_state(server: grpc.Server) -> Any:
    state = getattr(server, "_state", None)
    missing = [name for name in _PRIVATE if not hasattr(_server, name)]
    missing += [f"state.{name}" for name in _STATE if not hasattr(state, name)]
    if missing:
        raise Unexpected(f"grpcio {grpc.__version__} has no {', '.join(missing)}: see grpc_loop.py")
    return state


def handler_of(handlers: Any, path: str) -> Callable[[bytes, Any], bytes]:
    """Return the function with which generic handlers answer a unary method."""

    class Details:
        method = path

    handler: Callable[[bytes, Any], bytes] = handlers.service(Details()).unary_unary
    return handler
