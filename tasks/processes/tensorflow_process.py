"""TensorFlow child processes: the process that runs a flow never imports TensorFlow.

A stage names one of the programs in `tasks/in_tensorflow/` and gets back its artifact:

    checkpoint = run("train", Checkpoint, log=folder / "train.log", arguments={...})

Each call runs in a process and a session of its own, which end with their parent. It is forked from a server
that has imported TensorFlow and runs nothing else (`fork_server.py`): a night imports TensorFlow once, from
`prepare()` on, and no stage waits for it.
The output of the process goes to `log`; if it fails, the error holds the last lines.

Run as a program (`python -m tasks.processes.tensorflow_process SOCKET`), this module is that server. A child
reads a JSON request from stdin and writes JSON lines to stdout: `{"progress": …}`, and finally
`{"result": …}` or `{"error": …}`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import logging
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import TypeAdapter, validate_call
from pydantic_core import to_jsonable_python

from tasks.core import log_lines, masking, op_libraries
from tasks.core.artifacts import Check, Run
from tasks.core.errors import (
    CheckedError,
    EnvironmentFault,
    ModelError,
    ProcessDied,
    ProcessStalled,
    SlipwayError,
    disk_full,
    error_named,
    is_disk_full,
)
from tasks.processes import fork_server

Artifact = TypeVar("Artifact")
Progress = Callable[[Mapping[str, Any]], None]

LOG_LINES_SHOWN = 15
_GRACE_OF_STALLED_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "GRPC_VERBOSITY": "ERROR"}
_READ_AT_IMPORT = ("TF_", "ONEDNN_", "DNNL_", "XLA_", "CUDA_", "OMP_", "OPENBLAS_", "MKL_", "LD_", "PYTHON")
"""Variables that begin so decide what importing TensorFlow does; all others are each call's own."""


def ignore_progress(_: Mapping[str, Any]) -> None:
    """Ignore progress."""


class Child:
    """A process forked from one that has imported TensorFlow; it waits for its request."""

    def __init__(self) -> None:
        self._early_log: IO[bytes] = tempfile.TemporaryFile()
        self._server = prepare()
        self.process = self._server.fork(self._early_log)

    def send(self, request: Mapping[str, Any]) -> None:
        """Send the request, with this process's environment and working folder; there can be but one."""
        message = {**request, "environment": _environment(), "working_folder": str(Path.cwd())}
        try:
            self.process.stdin.write(json.dumps(message).encode())
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it died while importing: reading its replies says so, with the log

    def replies(
        self,
        deadline: float | None,
        stall_seconds: float | None = None,
        look: Callable[[], None] = lambda: None,
    ) -> Any:
        """Yield its JSON lines until it closes them; raise TimeoutError at `deadline` (monotonic).

        Raises _Stalled after `stall_seconds` of waiting without a line: what whoever takes the lines, or
        `look`, needs does not count. Calls `look` every second, and at each line.
        """
        stdout = self.process.stdout
        buffer = b""
        silent = 0.0
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while True:
                look()
                left, began = _left(deadline, silent, stall_seconds), time.monotonic()
                if not selector.select(min(left, _LOOK_SECONDS)):
                    silent += time.monotonic() - began
                    continue
                silent = 0.0
                chunk = os.read(stdout.fileno(), 65536)
                if not chunk:
                    return
                *lines, buffer = (buffer + chunk).split(b"\n")
                yield from map(json.loads, lines)

    def early_log(self) -> str:
        """Return what it printed before it had its request."""
        self._early_log.seek(0)
        return self._server.log() + self._early_log.read().decode(errors="replace")

    def close(self, grace_seconds: float) -> int:
        """End it, by SIGTERM and after `grace_seconds` by SIGKILL, and return its exit code."""
        try:
            if self.process.poll() is None:
                self.process.terminate()
                self.process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if self.process.poll() is None:
                self.process.kill()
            for stream in (self.process.stdin, self.process.stdout, self._early_log):
                _close_quietly(stream)
        return self.process.wait()


class _Stalled(Exception):
    """No line came for too long."""


def _left(deadline: float | None, silent: float, stall_seconds: float | None) -> float:
    """Return the seconds until the next of the two ends. Raises TimeoutError or _Stalled at it."""
    until_deadline = math.inf if deadline is None else deadline - time.monotonic()
    until_stall = math.inf if stall_seconds is None else stall_seconds - silent
    if until_deadline <= 0:
        raise TimeoutError
    if until_stall <= 0:
        raise _Stalled
    return min(until_deadline, until_stall)


def _close_quietly(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        pass


_server: fork_server.ForkServer | None = None
_imported_with: Mapping[str, str] = {}


def prepare() -> fork_server.ForkServer:
    """Start the fork server, which imports TensorFlow, unless it is running; return it."""
    global _server, _imported_with
    environment = _environment()
    decides = {name: value for name, value in environment.items() if name.startswith(_READ_AT_IMPORT)}
    if _server is not None and not (_server.is_alive and decides == _imported_with):
        close()
    if _server is None:
        _server = fork_server.ForkServer("tasks.processes.tensorflow_process", environment)
        _imported_with = decides
        atexit.register(close)
    return _server


def close() -> None:
    """End the process that `prepare` started, if there is one."""
    global _server
    atexit.unregister(close)
    if _server is not None:
        _server.close()
        _server = None


def _environment() -> dict[str, str]:
    return {**_QUIET, **os.environ}


def run(  # noqa: PLR0913 (one way in: what is asked for, and each limit on it)
    program: str,
    returns: type[Artifact],
    *,
    log: Path,
    arguments: Mapping[str, Any],
    on_progress: Progress = ignore_progress,
    timeout_seconds: float | None = None,
    stall_timeout_seconds: float | None = None,
    grace_seconds: float = 30.0,
    secrets: Mapping[str, str] | None = None,
    ops_of: Run | None = None,
) -> Artifact:
    """Run `tasks.in_tensorflow.<program>.run(progress, **arguments)` in a child; return its artifact.

    What it prints is appended to `log`; warnings and errors among it are progress too, with the `level` that
    they have in `logging`. Interrupted (Ctrl-C, cancellation, timeout), the child gets
    SIGTERM and `grace_seconds` to save its work, then SIGKILL: no process is left. Raises the error of
    `tasks.core.errors` that the program raised, or ProcessDied; ProcessStalled where it tells no progress for
    `stall_timeout_seconds`, counted from its start too. `secrets` are in its environment, and masked in its
    progress and errors and, when it has ended, in the log. The child loads the op libraries of the run among
    `arguments`, or of `ops_of`.
    """
    child = Child()
    hidden = list((secrets or {}).values())

    def told(progress: Mapping[str, Any]) -> None:
        on_progress(masking.masked(dict(progress), hidden))

    forwarded = log_lines.Forwarded(
        log,
        lambda level, line: told({"message": line, "level": level}),
        lambda text: str(masking.masked(text, hidden)),
    )
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    try:
        child.send(request_for(program, log, arguments, secrets, ops_of))
        for reply in child.replies(deadline, stall_timeout_seconds, forwarded.look):
            if "progress" in reply:
                told(reply["progress"])
            elif "error" in reply:
                raise _rebuilt(masking.masked(reply["error"], hidden))
            else:
                return TypeAdapter(returns).validate_python(reply["result"])
        code = child.process.wait()
        raise _death(program, code, masking.masked(_last_lines(log) or child.early_log(), hidden))
    except TimeoutError:
        message = f"{program} did not finish in {timeout_seconds:.0f} s"
        raise ProcessDied(message, _log_of(log, hidden)) from None
    except _Stalled:
        grace_seconds = min(grace_seconds, _GRACE_OF_STALLED_SECONDS)
        message = f"{program} made no step for {stall_timeout_seconds:g} s, and was killed"
        raise ProcessStalled(message, _log_of(log, hidden)) from None
    finally:
        child.close(grace_seconds)
        forwarded.close()
        masking.mask_file(log, hidden)


def request_for(
    program: str,
    log: Path,
    arguments: Mapping[str, Any],
    secrets: Mapping[str, str] | None = None,
    ops_of: Run | None = None,
) -> dict[str, Any]:
    """Return the request for a child, and create the folder of its log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    given = to_jsonable_python(dict(arguments))
    run = to_jsonable_python(ops_of) or given.get("run") or {}
    libraries = {"ops": run.get("ops", ()), "source": run.get("source")}
    return {
        "program": program, "log": str(log), "arguments": given, "secrets": dict(secrets or {}), **libraries,
    }  # fmt: skip


def raise_failure(program: str, child: Child, log: Path) -> None:
    """Raise the error that a child which has ended told, or that it died of; return where it did neither."""
    for reply in child.replies(None):
        if "error" in reply:
            raise _rebuilt(reply["error"])
        if "result" in reply:
            return
    raise _death(program, child.process.wait(), _last_lines(log) or child.early_log())


def _rebuilt(error: Mapping[str, Any]) -> SlipwayError:
    kind = error_named(error["class"])
    if issubclass(kind, CheckedError):
        checks = TypeAdapter(tuple[Check, ...]).validate_python(error["checks"])
        return kind(error["message"], error["hint"], checks)
    return kind(error["message"], error["hint"])


def _death(program: str, exit_code: int, log_lines: str) -> ProcessDied:
    how = f"exit code {exit_code}"
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        how = f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return ProcessDied(f"the process of {program} died: {how}", f"last lines of its log:\n{log_lines}")


def _last_lines(log: Path) -> str:
    if not log.is_file():
        return ""
    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
    return "\n".join(lines)


def _log_of(log: Path, hidden: Sequence[str]) -> str:
    return f"its log: {log}\n{masking.masked(_last_lines(log), hidden)}"


def main() -> None:
    """Import TensorFlow, fork whenever asked to, and in each child run what is requested, and reply."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it decides, and sends SIGTERM
    gc.disable()  # the collector would walk again and again through what stays for ever: a fifth of the time
    importlib.import_module("tensorflow")
    importlib.import_module("tasks.in_tensorflow.train")  # and with it what every program needs
    gc.freeze()
    gc.enable()
    _keep_what_is_worth_reading(logging.getLogger("tensorflow"))
    fork_server.serve(socket.socket(fileno=int(sys.argv[1])))
    importlib.import_module("numpy").random.seed()  # or every child would draw the same numbers
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # prints of TensorFlow and of users' code must not mix with the replies
    if request := sys.stdin.buffer.read():
        _serve(json.loads(request), replies)


def _keep_what_is_worth_reading(logger: logging.Logger) -> None:
    """Log what Estimators report (loss, step, files), without the advice to use Keras instead."""
    logger.setLevel(logging.INFO)
    logger.addFilter(lambda record: "is deprecated and will be removed" not in record.getMessage())


def _serve(request: Mapping[str, Any], replies: IO[str]) -> None:
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(request["environment"] | request["secrets"])
    os.chdir(request["working_folder"])

    def reply(message: Mapping[str, Any]) -> None:
        try:
            replies.write(json.dumps(to_jsonable_python(message)) + "\n")
        except BrokenPipeError:
            pass  # the flow was killed: go on to save what can be saved

    try:
        _load_ops(request)
        program = importlib.import_module(f"tasks.in_tensorflow.{request['program']}")
        checked = validate_call(config={"arbitrary_types_allowed": True})(program.run)
        result = checked(lambda progress: reply({"progress": progress}), **request["arguments"])
        reply({"result": result})
    except Exception as error:
        known = error if isinstance(error, SlipwayError) else _wrapped(request, error)
        with contextlib.suppress(OSError):  # the log's disk is full: say that, rather than die of it
            traceback.print_exc()
        reply({"error": _described(known)})
    with contextlib.suppress(OSError):
        sys.stdout.flush()


def _load_ops(request: Mapping[str, Any]) -> None:
    """Load the op libraries of the request, for good: this process serves no other."""
    if not request["ops"]:
        return
    tensorflow = importlib.import_module("tensorflow")
    libraries = op_libraries.found(request["ops"], Path(request["source"]))
    os.environ[op_libraries.VARIABLE] = os.pathsep.join(str(each.path) for each in libraries)
    for library in libraries:
        try:
            tensorflow.load_op_library(str(library.path))
        except tensorflow.errors.OpError as error:
            message = f"server.ops: {library.path} does not load: {error.message}"
            hint = (
                f"build it with the headers and flags of TensorFlow {tensorflow.__version__} (tf.sysconfig)"
            )
            raise EnvironmentFault(message, hint) from error


def _described(error: SlipwayError) -> Mapping[str, Any]:
    return {
        "class": type(error).__name__, "message": error.message, "hint": error.hint,
        "checks": getattr(error, "checks", ()),
    }  # fmt: skip


def _wrapped(request: Mapping[str, Any], error: Exception) -> SlipwayError:
    if isinstance(error, OSError) and is_disk_full(error):
        return disk_full(error.filename or Path(request["log"]).parents[1], str(error.strerror))
    if isinstance(error, OSError):
        return EnvironmentFault(f"{error.filename or 'this machine'}: {error.strerror or error}")
    message = f"{request['program']} failed: {type(error).__name__}: {error}"
    return ModelError(message, f"the traceback is in {request['log']}")


if __name__ == "__main__":
    main()
