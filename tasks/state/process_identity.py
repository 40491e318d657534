"""Identity of a process on this machine: a pid alone is recycled, and a start time moves with the clock."""

from __future__ import annotations

from pathlib import Path

import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def of(pid: int) -> str:
    """Return `pid:boot id:start ticks`, which no change of the clock moves. Raises psutil.NoSuchProcess."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None
    return f"{pid}:{_BOOT_ID.read_text().strip()}:{after_name[19]}"


def find(identity: str) -> psutil.Process | None:
    """Return the process with this identity, if it still runs."""
    try:
        process = psutil.Process(int(identity.partition(":")[0]))
        runs = of(process.pid) == identity and process.status() != psutil.STATUS_ZOMBIE
        return process if runs else None
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return None
