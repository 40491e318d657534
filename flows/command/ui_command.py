"""`slipway ui`: a Prefect server with its UI, on loopback, with the runs under `$SLIPWAY_HOME`."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from types import FrameType

from rich.console import Console

import flows.environment  # noqa: F401  (it sets what the server is started with)
from configs.loading.errors import SlipwayError
from flows import ui_address
from flows.command import ephemeral_server
from tasks.core.errors import EnvironmentFault
from tasks.servers.model_servers import port_holder
from tasks.state import prefect_database

console = Console(highlight=False)
_POLL_SECONDS = 0.05
_HINT = (
    "if its output says that the database is damaged, move that file away: it holds Prefect's history, no "
    f"state of a run; {ephemeral_server.TIMEOUT_VARIABLE} sets how long to wait"
)


def serve(port: int) -> int:
    """Serve until Ctrl-C or SIGTERM. Runs started meanwhile (`slipway run`) show up in it, live."""
    holder = port_holder(port)
    if holder is not None:
        raise SlipwayError(f"port {port} is in use by {holder}", "slipway ui --port names another")
    origin = f"http://127.0.0.1:{port}"
    api = f"{origin}/api"
    auth, origins, own_auth = _access(origin)
    # PREFECT_SERVER_API_PORT, not --port: the UI asks for its API at the former (prefect.md, 3).
    variables = {
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_API_URL": api,
        "PREFECT_UI_API_URL": api,
        "PREFECT_SERVER_API_AUTH_STRING": auth,
        "PREFECT_API_AUTH_STRING": auth,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origins,
    }
    _set_damaged_database_aside()
    console.print(f"Prefect UI: [bold]{origin}[/]   (Ctrl-C ends it; the runs stay)")
    if own_auth:
        _print_access(api)
    signal.signal(signal.SIGTERM, _interrupt)
    server: subprocess.Popen[bytes] | None = None
    try:
        command = [sys.executable, "-m", "prefect", "server", "start"]
        server = subprocess.Popen(command, env={**os.environ, **variables})
        with ui_address.recorded_ui(api, own_auth) as ready:
            _wait_until_ready(server, api)
            ready()
            return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        if server is not None:
            server.terminate()
            server.wait()


def _set_damaged_database_aside() -> None:
    """Move a damaged SQLite database away, unless another server of this home may have it open."""
    database = ephemeral_server.configured_database()
    if database is None or ui_address.ui_api() is not None or ephemeral_server.is_running():
        return
    if (moved := prefect_database.set_aside_if_damaged(database)) is not None:
        console.print(moved, markup=False, soft_wrap=True)


def _wait_until_ready(server: subprocess.Popen[bytes], api: str) -> None:
    """Return when the API answers. Raises EnvironmentFault at the deadline, or if the server ends."""
    from prefect.settings import get_current_settings

    timeout_seconds = get_current_settings().server.ephemeral.startup_timeout_seconds
    ends = time.monotonic() + timeout_seconds
    while not ephemeral_server.answers(api):
        if (code := server.poll()) is not None:
            message = f"the Prefect server ended with exit code {code}: its output is above"
            raise EnvironmentFault(message, _HINT)
        if time.monotonic() > ends:
            message = f"the Prefect server at {api} did not answer within {timeout_seconds:g} s"
            raise EnvironmentFault(message, _HINT)
        time.sleep(_POLL_SECONDS)


def _print_access(api: str) -> None:
    file = ui_address.auth_file()
    for line in (
        f"The password for it is in {file}. Commands of Prefect, such as a worker, need:",
        f"  export PREFECT_API_URL={api}",
        f'  export PREFECT_API_AUTH_STRING="$(cat {shlex.quote(str(file))})"',
    ):
        console.print(line, markup=False, soft_wrap=True)


def _access(origin: str) -> tuple[str, str, bool]:
    """Return the API's credentials, the origins of pages that may ask it, and whether the former are ours.

    Without them a page of any site, in a browser on this machine, and any user of this machine could have a
    worker run a command: deployments name shell commands. Settings of the user's win.
    """
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    given = settings.server.api.auth_string or settings.api.auth_string
    origins = settings.server.api.cors_allowed_origins
    allowed = origin if origins == "*" else origins
    if given is not None and given.get_secret_value() and not _is_own(given.get_secret_value()):
        return given.get_secret_value(), allowed, False
    return ui_address.auth_string(), allowed, True


def _is_own(auth: str) -> bool:
    return ui_address.auth_file().exists() and auth == ui_address.auth_string()


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
