"""A run survives the loss of whoever reads what it prints: a worker that was killed, a closed pager.

Rich, which prints Prefect's log lines, ends the process by SystemExit when a pipe has no reader any more.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TextIO


def survive() -> None:
    """Make writes to stdout and stderr never fail in this process; calling it again changes nothing.

    What is printed after the reader is gone, or the disk below a redirected output is full, is dropped:
    logs and verdict are in the run's folder, and Prefect's API has its log lines.
    """
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None and "write" not in vars(stream):
            stream.write = _tolerant(stream, stream.write)  # type: ignore[method-assign]
            stream.flush = _tolerant(stream, stream.flush)  # type: ignore[method-assign]


def _tolerant(stream: TextIO, method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except OSError:
            _drop(stream)  # what was buffered too: else each later flush, and the last one, would fail
            return len(arguments[0]) if arguments else None

    return call


def _drop(stream: TextIO) -> None:
    """Redirect the stream to /dev/null."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
    except (OSError, ValueError):
        pass  # no file, but something that stands for one
    finally:
        os.close(null)
