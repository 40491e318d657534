"""The model server as a local process: start, look after, stop. For machines without a Docker engine."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from configs.home import servers_folder
from tasks.errors import DeployFailed, EnvironmentFault
from tasks.server_records import ServerRecord

OWN_PROGRAM = "model_server"
_SOURCES = Path(__file__).resolve().parents[1] / "containers" / "model_server"


def identity(executable: Path | None) -> str:
    """Return what tells this program from another: a hash of our sources, or path and time of a file."""
    if executable is None:
        digest = hashlib.sha256()
        for source in sorted(_SOURCES.glob("*.py")):
            digest.update(source.read_bytes())
        return f"{OWN_PROGRAM}:{digest.hexdigest()[:12]}"
    return f"{executable}:{executable.stat().st_mtime_ns}"


def require_executable(executable: Path) -> None:
    """Raise EnvironmentFault unless the program can be run."""
    if not (executable.is_file() and os.access(executable, os.X_OK)):
        raise EnvironmentFault(f"server.executable {executable} is not a program that can be run")


def log_file(model_name: str) -> Path:
    """Return the file that holds what the model's server prints."""
    return servers_folder() / f"{model_name}.log"


def start(record: ServerRecord, flags: Sequence[str]) -> tuple[str, str]:
    """Start the server, detached from this process; return its handle `pid:start time` and log file.

    Raises DeployFailed where the operating system cannot run the program.
    """
    own = record.program == OWN_PROGRAM
    command = [sys.executable, "-m", OWN_PROGRAM] if own else [record.program]
    log = log_file(record.model_name)
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_suffix(".log.1"))
    try:
        process = _spawn([*command, *flags], log)
    except OSError as error:
        raise DeployFailed(f"{command[0]} cannot be run: {error.strerror}", "run it by hand to see") from None
    return f"{process.pid}:{psutil.Process(process.pid).create_time()}", str(log)


def _spawn(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C at the terminal is for the run, not for the server
            env={**os.environ, "MODEL_SERVER_HOST": "127.0.0.1"},
        )


def find(handle: str) -> psutil.Process | None:
    """Return the process that `handle` names, if it still runs."""
    pid, _, created = handle.partition(":")
    try:
        process = psutil.Process(int(pid))
        same = abs(process.create_time() - float(created)) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.NoSuchProcess, ValueError):
        return None


def stop(handle: str, grace_seconds: float) -> None:
    """End the process by SIGTERM, which drains it, and after `grace_seconds` by SIGKILL."""
    process = find(handle)
    if process is None:
        return
    try:
        process.terminate()
        process.wait(grace_seconds)
    except psutil.TimeoutExpired:
        process.kill()
        process.wait(grace_seconds)
    except psutil.NoSuchProcess:
        pass
