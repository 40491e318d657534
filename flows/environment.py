"""What Prefect reads from the environment when it is imported: import this module before it.

Only defaults: a variable that is set already wins. State goes under `$SLIPWAY_HOME`, nothing is sent to
anyone, and a server started by `slipway ui` is used where it answers.
"""

from __future__ import annotations

import os

from configs.schema import home as homes
from configs.schema.home import home
from flows.ui_address import ui_api, ui_auth_string

_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # In memory, by default: a server that is started again knows no lease, and ends the runs that hold one.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # An alert of silence that fell due while the server was down is sent when it is up again; by default
    # Prefect drops it after a minute, and begins anew.
    "PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER": "P7D",
    # On a busy machine minutes pass until a server with a new database answers; Prefect's default is 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600",
}


_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def prepare() -> None:
    """Set the defaults, close the home to other users, and ask no proxy for what is on this machine."""
    homes.close_to_others()
    homes.make()
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    for name in ("no_proxy", "NO_PROXY"):  # gRPC reads the first alone
        given = [each for each in os.environ.get(name, "").split(",") if each]
        os.environ[name] = ",".join([*given, *(each for each in _LOOPBACK if each not in given)])
    if not {"PREFECT_HOME", "PREFECT_PROFILE"} & set(os.environ):
        prefect_home = home() / "prefect"
        prefect_home.mkdir(parents=True, exist_ok=True)  # Prefect makes it too, but with a warning
        os.environ["PREFECT_HOME"] = str(prefect_home)
        if "PREFECT_API_URL" not in os.environ and (api := ui_api()) is not None:
            os.environ["PREFECT_API_URL"] = api
    if "PREFECT_API_AUTH_STRING" not in os.environ:
        known = ui_auth_string(os.environ.get("PREFECT_API_URL", ""))  # sent to no other server
        if known is not None:
            os.environ["PREFECT_API_AUTH_STRING"] = known


prepare()
