"""tensorflow.ProfilerService: what TensorBoard's "capture profile" asks for (tsl/profiler/rpc).

TensorFlow's own profiler server would open a second port, on every address and without TLS. Here its
session is driven from the server's gRPC port, behind the same credentials as all else.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError
from tensorflow.tsl.profiler.protobuf import profiler_options_pb2, xplane_pb2

from model_server.base import text_protos
from model_server.base.status import Code, StatusError, from_exception, invalid_argument, truncated
from model_server.base.text_protos import Field

SERVICE = "tensorflow.ProfilerService"
_LOG = logging.getLogger(__name__)
_LONGEST_SECONDS = 3600.0
_LOOK_SECONDS = 0.05  # how often a trace asks whether its client is still there
_CODES = {code.value[0]: code for code in grpc.StatusCode}

if TYPE_CHECKING:  # grpc's classes are generic in its stubs only
    Handlers = grpc.GenericRpcHandler[bytes, bytes]

MESSAGES = text_protos.declare(
    "tsl/profiler/protobuf/profiler_service.proto",
    "tensorflow",
    {
        "ProfileRequest": [
            Field(1, "duration_ms", "uint64"),
            Field(2, "max_events", "uint64"),
            Field(3, "tools", "string", repeated=True),
            Field(4, "opts", "tensorflow.ProfileOptions"),
            Field(5, "repository_root", "string"),
            Field(6, "session_id", "string"),
            Field(7, "host_name", "string"),
        ],
        "ProfileToolData": [Field(1, "name", "string"), Field(2, "data", "bytes")],
        "ProfileResponse": [
            Field(6, "tool_data", "tensorflow.ProfileToolData", repeated=True),
            Field(7, "empty_trace", "bool"),
        ],
        "TerminateRequest": [Field(1, "session_id", "string")],
        "TerminateResponse": [],
    },
    imports=[profiler_options_pb2.DESCRIPTOR.name],
)


class Profiler:
    """Traces this process, one trace at a time."""

    def __init__(self) -> None:
        self._tracing = threading.Lock()
        self._ended: dict[str, threading.Event] = {}

    def profile(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Trace for as long as the request says, and write REPOSITORY_ROOT/SESSION/HOST.xplane.pb."""
        path = _trace_file(request)
        seconds = (request.opts.duration_ms or request.duration_ms) / 1000
        if not 0 < seconds <= _LONGEST_SECONDS:
            raise invalid_argument(
                f"duration_ms must be from 1 to {_LONGEST_SECONDS * 1000:g}, found {seconds * 1000:g}"
            )
        if not self._tracing.acquire(blocking=False):
            raise StatusError(Code.ALREADY_EXISTS, "Another profiler session is active.")
        ended = self._ended[request.session_id] = threading.Event()
        try:
            with _scratch_beside(path) as scratch:
                _trace(scratch, request.opts, lambda: _wait(ended, context, seconds))
                if not context.is_active():
                    raise StatusError(Code.CANCELLED, "the client has gone")
                (traced,) = scratch.glob("plugins/profile/*/*.xplane.pb")
                traced.replace(path)
        finally:
            self._ended.pop(request.session_id, None)
            self._tracing.release()
        _LOG.info("profiler: traced to %s", path)
        planes = xplane_pb2.XSpace.FromString(path.read_bytes()).planes
        return MESSAGES["ProfileResponse"](empty_trace=not any(plane.lines for plane in planes))

    def terminate(self, request: Any, _: grpc.ServicerContext) -> Any:
        """End the trace of that session early; what was traced until then is its result."""
        ended = self._ended.get(request.session_id)
        if ended:
            ended.set()
        return MESSAGES["TerminateResponse"]()


def profiler_service() -> Handlers:
    """Return the handlers of tensorflow.ProfilerService; Monitor is as unimplemented as it is officially."""
    profiler = Profiler()
    methods = {
        "Profile": _handler(MESSAGES["ProfileRequest"], profiler.profile),
        "Terminate": _handler(MESSAGES["TerminateRequest"], profiler.terminate),
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _handler(request_type: Any, answer: Any) -> Any:
    def handle(serialized: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return bytes(answer(request_type.FromString(serialized), context).SerializeToString())
        except DecodeError:
            error = StatusError(Code.INTERNAL, f"Failed to parse the bytes of the request to {SERVICE}")
        except Exception as raised:
            error = from_exception(raised)
        context.set_code(_CODES[error.code])
        context.set_details(truncated(error.message))
        return b""

    return grpc.unary_unary_rpc_method_handler(handle)


def _trace_file(request: Any) -> Path:
    for name in ("session_id", "host_name"):
        value = getattr(request, name)
        if "/" in value or value in (".", "..") or "\0" in value:
            raise invalid_argument(f"{name} must be a name, found {value!r}")
    if not request.repository_root:
        raise invalid_argument("repository_root is not set: there is nowhere to write the trace to")
    if "\0" in request.repository_root:
        raise invalid_argument("repository_root must be a path")
    name = f"{request.host_name or os.uname().nodename}.xplane.pb"
    return Path(request.repository_root, request.session_id, name)


@contextmanager
def _scratch_beside(path: Path) -> Iterator[Path]:
    """Make the directory of `path`, and in it one for what TensorFlow writes; the latter is removed again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".tracing-", dir=path.parent))
    except OSError as error:
        raise StatusError(
            Code.FAILED_PRECONDITION, f"cannot write the trace to {path}: {error.strerror}"
        ) from None
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _trace(directory: Path, options: Any, wait: Callable[[], None]) -> None:
    session = _session()
    levels = ("host_tracer_level", "device_tracer_level", "python_tracer_level")
    session.start(str(directory), {level: getattr(options, level) for level in levels})
    try:
        wait()
    finally:
        session.export_to_tb()  # this is what ends it


def _session() -> Any:
    # TensorFlow's Python, which a server that nobody traces does without (runtime.py).
    from tensorflow.python.framework import errors_impl
    from tensorflow.python.profiler.internal import _pywrap_profiler

    assert errors_impl  # importing it registers the exceptions that the session raises
    return _pywrap_profiler.ProfilerSession()


def _wait(ended: threading.Event, context: grpc.ServicerContext, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while context.is_active() and (left := deadline - time.monotonic()) > 0:
        if ended.wait(min(left, _LOOK_SECONDS)):
            return
