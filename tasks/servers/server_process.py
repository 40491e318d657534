"""The model server as a local process: start, look after, stop. For machines without a Docker engine."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import psutil

from configs.schema.home import servers_folder
from tasks.core.errors import DeployFailed, EnvironmentFault
from tasks.state import process_identity
from tasks.state.server_records import ServerRecord, TemporaryRole

OWN_PROGRAM = "model_server"
_ALLOWED = re.compile(
    "PATH|LD_LIBRARY_PATH|LD_PRELOAD|HOME|LANG|LC_[A-Z]+|TZ|TZDIR|TMPDIR|MALLOC_.*|PYTHON(HASHSEED|UNBUFFERED|PATH|HOME)"
    "|VIRTUAL_ENV|(MODEL_SERVER|TF|TENSORFLOW|XLA|ONEDNN|DNNL|OMP|KMP|MKL|CUDA|CUDNN|NVIDIA|GRPC)_.*"
    "|MODEL_NAME|MODEL_BASE_PATH|SSL_CERT_(FILE|DIR)"
)
"""Variables that the server inherits. A graph can read its environment: no secrets of the pipeline."""
_SOURCES = Path(__file__).resolve().parents[2] / "containers" / "model_server"


def identity(executable: Path | None) -> str:
    """Return what tells this program from another: a hash of our sources, or path and time of a file."""
    if executable is None:
        digest = hashlib.sha256()
        for source in sorted(_SOURCES.rglob("*.py")):
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


def log_place(record: ServerRecord, role: TemporaryRole | None = None) -> str:
    """Return the file that holds what the server prints, as records have it."""
    return str(log_file(f"{record.model_name}.{role}" if role else record.model_name))


def start(
    record: ServerRecord, flags: Sequence[str], beside: bool = False, role: TemporaryRole | None = None
) -> str:
    """Start the server, detached from this process; return its handle.

    With `beside` our own server listens at the same ports as one that does already, once it can answer.

    Raises DeployFailed where the operating system cannot run the program.
    """
    own = record.program == OWN_PROGRAM
    command = [sys.executable, "-m", OWN_PROGRAM] if own else [record.program]
    log = Path(log_place(record, role))
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_suffix(".log.1"))
    try:
        process = _spawn([*command, *flags], log, _environment(record, beside, role))
    except OSError as error:
        raise DeployFailed(f"{command[0]} cannot be run: {error.strerror}", "run it by hand to see") from None
    return process_identity.of(process.pid)


def find_unrecorded(model_name: str) -> ServerRecord | None:
    """Return the record of the model's server, rebuilt from the process table; None if none runs.

    The server is the one whose output goes to the model's log. Its identity is unknown, so the next deploy
    replaces it by one that is as planned.
    """
    log = str(log_file(model_name).resolve())
    for process in psutil.process_iter():
        try:
            if str(Path(f"/proc/{process.pid}/fd/1").readlink()) == log and _leads(process):
                return _rebuilt(model_name, process)
        except (OSError, psutil.Error, ValueError, KeyError, StopIteration):
            continue  # it has ended, belongs to another user, or takes other flags
    return None


def _rebuilt(model_name: str, process: psutil.Process) -> ServerRecord:
    command = process.cmdline()
    first = next(index for index, part in enumerate(command) if part.startswith("--port="))
    given = dict(part.removeprefix("--").split("=", 1) for part in command[first:])
    if given["model_name"] != model_name:
        raise ValueError(given["model_name"])
    started = datetime.fromtimestamp(process.create_time(), timezone.utc)
    return ServerRecord(
        model_name=model_name,
        target="process",
        program=OWN_PROGRAM if OWN_PROGRAM in command[:first] else command[first - 1],
        identity="",
        model_base_path=given["model_base_path"],
        flags=tuple(command[first + 4 :]),
        grpc_port=int(given["port"]),
        rest_port=int(given["rest_api_port"]),
        handle=process_identity.of(process.pid),
        log=str(log_file(model_name)),
        started_at=started.isoformat(timespec="seconds"),
        tls=given.get("ssl_config_file", ""),
        published_only=process.environ().get("MODEL_SERVER_PUBLISHED_ONLY") == "true",
        ops=tuple(filter(None, process.environ().get("MODEL_SERVER_OPS", "").split(os.pathsep))),
    )


def find_started(
    record: ServerRecord, flags: Sequence[str], besides: str = "", _role: TemporaryRole | None = None
) -> str | None:
    """Return the handle of a server whose start was not noted: its run was killed between the two.

    It is the process, another one than `besides`, that runs this program with just these flags, ports and
    base path among them.
    """
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if record.program in command and command[-len(flags) :] == list(flags) and _leads(process):
            handle = process_identity.of(process.pid)
            if handle != besides:
                return handle
    return None


def _leads(process: psutil.Process) -> bool:
    """Return whether this is a server rather than one of its workers: it leads a session."""
    try:
        return os.getsid(process.pid) == process.pid and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def _environment(record: ServerRecord, beside: bool, role: TemporaryRole | None) -> dict[str, str]:
    given = {name: value for name, value in os.environ.items() if _ALLOWED.fullmatch(name)}
    environment = {"MODEL_SERVER_RELOAD": "false", **given, "MODEL_SERVER_HOST": "127.0.0.1"}
    if beside:
        environment["MODEL_SERVER_SHARE_PORTS"] = "true"
    environment["MODEL_SERVER_PUBLISHED_ONLY"] = str(record.published_only and role is None).lower()
    environment["MODEL_SERVER_OPS"] = os.pathsep.join(record.ops)
    if role is not None:
        environment.pop("MODEL_SERVER_REQUEST_LOG", None)  # what it is asked, no client asked
    return environment


def _spawn(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C at the terminal is for the run, not for the server
            env=environment,
        )


def find(handle: str) -> psutil.Process | None:
    """Return the process that `handle` names, if it still runs."""
    return process_identity.find(handle)


def can_answer(record: ServerRecord) -> bool:
    """Return whether the process, or a child of it, listens on the record's ports."""
    process = find(record.handle)
    if process is None:
        return False
    try:
        family = [process, *process.children(recursive=True)]
        connections = [each for member in family for each in member.net_connections(kind="tcp")]
    except psutil.NoSuchProcess:
        return False
    listening = {each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN}
    return {record.grpc_port, record.rest_port} <= listening


def hand_over(record: ServerRecord, seconds: float) -> None:
    """Drain the process by SIGUSR1; return when it has ended, or after the deadline."""
    process = find(record.handle)
    if process is None:
        return
    try:
        process.send_signal(signal.SIGUSR1)
        process.wait(seconds)
    except (psutil.TimeoutExpired, psutil.NoSuchProcess):
        pass


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
