"""The processes in which TensorFlow's programs run."""

from __future__ import annotations

import psutil


def running_programs(of: int | None = None) -> list[psutil.Process]:
    """Return what the fork servers of a process, by default this one, have forked, and what that started."""
    return [
        child for server in psutil.Process(of).children() if _forks(server)
        for child in server.children(recursive=True)
    ]  # fmt: skip


def _forks(process: psutil.Process) -> bool:
    try:
        return "tasks.processes.tensorflow_process" in process.cmdline()
    except psutil.Error:
        return False
