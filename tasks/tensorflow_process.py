"""TensorFlow child processes: the process that runs a flow never imports TensorFlow.

A stage names one of the programs in `tasks/in_tensorflow/` and gets back its artifact:

    checkpoint = run("train", Checkpoint, log=folder / "train.log", arguments={...})

Each call has a process of its own (after a call with `keep`, the next one takes the same), spawned, never
forked, in a session of its own, that dies with its parent. While one works, the next (`prepare()`) imports
TensorFlow, so that no stage waits for that.
What the process prints goes to `log`; when it fails, the error holds the last lines.

Run as a program (`python -m tasks.tensorflow_process`) this module is the child: a JSON line on stdin for
each request; on stdout JSON lines `{"progress": …}` and at last `{"result": …}` or `{"error": …}`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import logging
import math
import os
import selectors
import signal
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

from tasks import log_lines, masking
from tasks.artifacts import Check
from tasks.errors import (
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

Artifact = TypeVar("Artifact")
Progress = Callable[[Mapping[str, Any]], None]

LOG_LINES_SHOWN = 15
_GRACE_OF_STALLED_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


def ignore_progress(_: Mapping[str, Any]) -> None:
    """Take progress and do nothing with it."""


class Child:
    """A spawned interpreter that imports TensorFlow and waits for requests: as a rule, for one."""

    def __init__(self) -> None:
        self._early_log: IO[bytes] = tempfile.TemporaryFile()
        environment = {"TF_CPP_MIN_LOG_LEVEL": "2", "GRPC_VERBOSITY": "ERROR", **os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tasks.tensorflow_process", str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._early_log,
            env=environment, start_new_session=True,
        )  # fmt: skip

    def send(self, request: Mapping[str, Any], *, last: bool = True) -> None:
        """Send a request; after the last one it ends."""
        stdin = self.process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.close() if last else stdin.flush()
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
        assert stdout is not None
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
        return self._early_log.read().decode(errors="replace")

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


def _close_quietly(stream: IO[bytes] | None) -> None:
    try:
        if stream is not None:
            stream.close()
    except BrokenPipeError:
        pass


_spare: Child | None = None


def prepare() -> None:
    """Have a process import TensorFlow now, for the next `run()`. Does nothing where one is ready."""
    global _spare
    if _spare is None or _spare.process.poll() is not None:
        _spare = Child()


def close_spare() -> None:
    """End the process that was prepared and not used."""
    global _spare
    if _spare is not None:
        _spare.close(grace_seconds=1.0)
        _spare = None


def _take() -> Child:
    global _spare
    prepare()
    child, _spare = _spare, None
    assert child is not None
    return child


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
    prepare_next: bool = True,
    keep: bool = False,
    secrets: Mapping[str, str] | None = None,
) -> Artifact:
    """Run `tasks.in_tensorflow.<program>.run(progress, **arguments)` in a child; return its artifact.

    What it prints is appended to `log`; warnings and errors among it are progress too, with the `level` that
    they have in `logging`. Interrupted (Ctrl-C, cancellation, timeout), the child gets
    SIGTERM and `grace_seconds` to save its work, then SIGKILL: no process is left. Raises the error of
    `tasks.errors` that the program raised, or ProcessDied; ProcessStalled where it tells no progress for
    `stall_timeout_seconds`, counted from its start too. `secrets` are in its environment, and masked in its
    progress and errors and, when it has ended, in the log. With `keep` the next call gets the same
    process: for programs that leave nothing behind in it.
    """
    global _spare
    child = _take()
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
        child.send(request_for(program, log, arguments, secrets), last=not keep)
        if prepare_next and not keep:
            prepare()
        for reply in child.replies(deadline, stall_timeout_seconds, forwarded.look):
            if "progress" in reply:
                told(reply["progress"])
            elif "error" in reply:
                raise _rebuilt(masking.masked(reply["error"], hidden))
            else:
                if keep:
                    _spare = child
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
        if child is not _spare:
            child.close(grace_seconds)
        forwarded.close()
        masking.mask_file(log, hidden)


def request_for(
    program: str, log: Path, arguments: Mapping[str, Any], secrets: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return what a child is sent; the folder of its log is there then."""
    log.parent.mkdir(parents=True, exist_ok=True)
    given = {"arguments": to_jsonable_python(dict(arguments)), "secrets": dict(secrets or {})}
    return {"program": program, "log": str(log), **given}


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


def end_with_parent(by: signal.Signals) -> None:
    """Have the kernel send this process `by` when the thread that spawned it ends, kill -9 included."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)


def main() -> None:
    """Be the child: import TensorFlow, then read requests, run each, and reply."""
    parent = int(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides: it sends SIGTERM
    end_with_parent(signal.SIGTERM)
    if os.getppid() != parent:
        return
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # prints of TensorFlow and of users' code must not mix with the replies
    gc.disable()  # the collector would walk again and again through what stays for ever: a fifth of the time
    importlib.import_module("tensorflow")
    importlib.import_module("tasks.in_tensorflow.train")  # and with it what every program needs
    gc.freeze()
    gc.enable()
    _keep_what_is_worth_reading(logging.getLogger("tensorflow"))
    for request in sys.stdin.buffer:
        _serve(json.loads(request), replies)


def _keep_what_is_worth_reading(logger: logging.Logger) -> None:
    """Log what Estimators report (loss, step, files), without the advice to use Keras instead."""
    logger.setLevel(logging.INFO)
    logger.addFilter(lambda record: "is deprecated and will be removed" not in record.getMessage())


def _serve(request: Mapping[str, Any], replies: IO[str]) -> None:
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(request["secrets"])

    def reply(message: Mapping[str, Any]) -> None:
        try:
            replies.write(json.dumps(to_jsonable_python(message)) + "\n")
        except BrokenPipeError:
            pass  # the flow was killed: go on to save what can be saved

    try:
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
