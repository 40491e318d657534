"""One trainer in a model_dir: a trainer outlives the flow that was killed until it has saved its step."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from tasks.core.artifacts import Run
from tasks.core.errors import EnvironmentFault
from tasks.state import process_identity

SECONDS_TO_SAVE = 30.0
"""As long as an interrupted flow waits for its trainer."""
_SECONDS_AFTER_KILL = 10.0
_SECONDS_BETWEEN_TRIES = 0.1
_SECONDS_BETWEEN_REPORTS = 1.0


@contextmanager
def held(
    run: Run, tell: Callable[[str], None], still_waits: Callable[[str], None],
    seconds_to_save: float = SECONDS_TO_SAVE,
) -> Iterator[None]:  # fmt: skip
    """Hold the lock of `run.model_dir`; the operating system frees it when this process ends.

    Waits `seconds_to_save` for an earlier trainer to save its checkpoint, then kills it and whatever it
    started, and reports both with `tell`. Calls `still_waits` every second, so that waiting is no stall of
    training. Raises EnvironmentFault if the lock is not free even then: a trainer on another host or in
    another container holds it.
    """
    file = run.folder / ".trainer"
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _taken(lock):
            _wait_for_holder(lock, run, tell, still_waits, seconds_to_save)
        os.ftruncate(lock, 0)
        os.pwrite(lock, process_identity.of(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(lock)


def _wait_for_holder(
    lock: int, run: Run, tell: Callable[[str], None], still_waits: Callable[[str], None],
    seconds_to_save: float,
) -> None:  # fmt: skip
    holder = process_identity.find(os.pread(lock, 1000, 0).decode(errors="replace"))
    name = f"trainer {holder.pid}" if holder else "a trainer of another host or container"
    tell(f"{name} still writes to {run.model_dir}: waiting up to {seconds_to_save:g} s for its checkpoint")
    waits = partial(still_waits, f"waiting for {name} to end")
    if _taken_within(lock, seconds_to_save, waits):
        return
    if holder is not None:
        tell(f"{name} did not end in {seconds_to_save:g} s: killed")
        _kill(holder.pid)
        if _taken_within(lock, _SECONDS_AFTER_KILL, waits):
            return
    raise EnvironmentFault(
        f"{run.model_dir}: {name} still writes to it after {seconds_to_save:g} s",
        f"end that process, then: slipway run {run.pipeline} --resume {run.run_id}",
    )


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        os.killpg(pid, signal.SIGKILL)  # it leads a session: nothing that it started is left


def _taken_within(lock: int, seconds: float, still_waits: Callable[[], None]) -> bool:
    """Return whether the lock was free in time."""
    deadline = reported = time.monotonic()
    deadline += seconds
    while not _taken(lock):
        now = time.monotonic()
        if now >= deadline:
            return False
        if now - reported >= _SECONDS_BETWEEN_REPORTS:
            reported = now
            still_waits()
        time.sleep(_SECONDS_BETWEEN_TRIES)
    return True


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
