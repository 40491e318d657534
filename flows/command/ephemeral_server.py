"""The ephemeral Prefect server: for runs on one machine that no other server is named for.

There is one per `$SLIPWAY_HOME`. The first command that needs it starts it, other commands share it, and it
ends when the last of them has ended, even by `kill -9`: each holds a shared lock on a file, which the kernel
releases, and the server waits for an exclusive one.

Run as a program (`python -m flows.command.ephemeral_server SOCKET LOCK`) this module is the server; both are
inherited file descriptors.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from configs.schema.home import home
from flows.ui_address import auth_string, try_lock
from tasks.core.errors import EnvironmentFault
from tasks.state import prefect_database

TIMEOUT_VARIABLE = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"
_POLL_SECONDS = 0.05
_SHUTDOWN_SECONDS = 10.0
_LOG_LINES_SHOWN = 15
_log = logging.getLogger(__name__)
_users: IO[bytes] | None = None
"""Open, and locked, for as long as this process lives."""


@dataclass(frozen=True)
class EphemeralServer:
    """A server that was started, by this command or another; it may not be ready yet."""

    api: str
    log: Path
    alive: Path
    """A file that the server holds an exclusive lock on, as long as it lives."""
    started_here: bool

    def wait_until_ready(self, timeout_seconds: float, progress: Callable[[str], None]) -> bool:
        """Return True when the API answers, False if another command's server was about to end when joined.

        Raises EnvironmentFault at the deadline, or if a server that was started here ends.
        """
        started = reported = time.monotonic()
        while not answers(self.api):
            waited = time.monotonic() - started
            if self._has_ended():
                if not self.started_here:
                    return False
                raise EnvironmentFault(f"the ephemeral Prefect server ended: {self._last_lines()}", _hint())
            if waited >= timeout_seconds:
                message = f"the ephemeral Prefect server did not answer within {timeout_seconds:g} s"
                raise EnvironmentFault(f"{message}: {self._last_lines()}", _hint())
            if time.monotonic() - reported >= 1:
                reported = time.monotonic()
                progress(f"starting an ephemeral server: {waited:.0f} s (at most {timeout_seconds:g} s)")
            time.sleep(_POLL_SECONDS)
        return True

    def _has_ended(self) -> bool:
        with self.alive.open("rb") as file:
            return try_lock(file, fcntl.LOCK_EX)

    def _last_lines(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()[-_LOG_LINES_SHOWN:]
        return "\n".join((f"its log is {self.log}", *lines))


def require_api(progress: Callable[[str], None]) -> None:
    """Start or join the ephemeral server if no other is configured, and point Prefect to it.

    Raises EnvironmentFault if it does not answer in time.
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if settings.api.url is not None or not settings.server.ephemeral.enabled:
        return
    database = configured_database()
    timeout_seconds = settings.server.ephemeral.startup_timeout_seconds
    while not (server := joined(database, progress)).wait_until_ready(timeout_seconds, progress):
        pass
    os.environ["PREFECT_API_URL"] = server.api
    os.environ["PREFECT_API_AUTH_STRING"] = auth_string()
    refresh_global_settings_context()


def configured_database() -> Path | None:
    """Return the SQLite file that a Prefect server of these settings opens; None for another database."""
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    url = settings.server.database.connection_url
    return prefect_database.file_of(url.get_secret_value() if url else None, settings.home)


def joined(database: Path | None, progress: Callable[[str], None]) -> EphemeralServer:
    """Return the home's ephemeral server, started if there is none, and keep it until this process ends.

    Before a start, a damaged SQLite `database` is moved aside: it holds Prefect's history, no state of a run.
    """
    global _users
    folder = home() / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    if _users is None:
        _users = (folder / "ephemeral-server.users").open("ab")
        fcntl.flock(_users, fcntl.LOCK_SH)  # waits for one that is shutting down
    log, alive = folder / "ephemeral-server.log", folder / "ephemeral-server.json"
    with alive.open("a+b") as file:
        if try_lock(file, fcntl.LOCK_EX):
            if database is not None and (told := prefect_database.set_aside_if_damaged(database)):
                progress(told)
                _log.warning(told)
            return EphemeralServer(_started(file, log, folder / "ephemeral-server.users"), log, alive, True)
        return EphemeralServer(_address(file), log, alive, False)


def is_running() -> bool:
    """Return whether this home's ephemeral server runs."""
    try:
        with (home() / "prefect" / "ephemeral-server.json").open("rb") as file:
            return not try_lock(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _started(alive: IO[bytes], log: Path, users: Path) -> str:
    """Start the server, which inherits the lock on `alive`, and return its API's address."""
    environment = {**os.environ, "PREFECT_UI_ENABLED": "0"}
    environment |= {"PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    # The command sets it to keep its own terminal quiet; the server's log says why it failed.
    environment.pop("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", None)
    with socket.socket() as listener, log.open("wb") as output, users.open("ab") as lock:
        listener.bind(("127.0.0.1", 0))
        origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
        api = f"{origin}/api"
        environment["PREFECT_SERVER_API_AUTH_STRING"] = auth_string()
        environment["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = origin
        alive.truncate(0)
        alive.write(json.dumps({"api": api}).encode())
        alive.flush()
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(listener.fileno()), str(lock.fileno())],
            pass_fds=(listener.fileno(), lock.fileno(), alive.fileno()),
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env=environment,
        )  # fmt: skip
    return api


def _address(alive: IO[bytes]) -> str:
    """Return the address that the command which starts the server has written, or is about to write."""
    ends = time.monotonic() + _SHUTDOWN_SECONDS
    while time.monotonic() < ends:
        alive.seek(0)
        try:
            return str(json.loads(alive.read())["api"])
        except ValueError:
            time.sleep(_POLL_SECONDS)
    raise EnvironmentFault(f"{alive.name} names no address of the ephemeral Prefect server", _hint())


def answers(api: str) -> bool:
    """Return whether a Prefect server on this machine is ready."""
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=5):  # noqa: S310 (a loopback address of ours)
            return True
    except (OSError, http.client.HTTPException):
        return False


def _hint() -> str:
    return (
        "start one that stays (slipway ui, in another terminal) and run again, or set PREFECT_API_URL; "
        f"{TIMEOUT_VARIABLE} sets how long to wait; if the log says that its database is damaged, "
        "move that file away"
    )


def main() -> None:
    """Serve until no command holds the lock any more."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    users = os.fdopen(int(sys.argv[2]), "ab")

    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(
            "prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on",
            timeout_graceful_shutdown=2,
        )
    )  # fmt: skip

    def end_with_the_last_user() -> None:
        fcntl.flock(users, fcntl.LOCK_EX)
        server.should_exit = True
        time.sleep(_SHUTDOWN_SECONDS)
        os._exit(1)  # something in it does not end, and the next command waits for this lock

    threading.Thread(target=end_with_the_last_user, daemon=True).start()
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
