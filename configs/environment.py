"""What Prefect reads from the environment when it is imported: import this module before it.

Only defaults: a variable that is set already wins. State goes under `$SLIPWAY_HOME`, nothing is sent to
anyone, and a server started by `slipway ui` is used where it answers.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.request
from pathlib import Path

from configs.home import home

_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # A fresh data base took up to 42 s to make on a loaded machine; Prefect gives up after 20.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}


def ui_record() -> Path:
    """Return the file in which `slipway ui` notes the address of its API while it runs."""
    return home() / "servers" / ".prefect-ui.json"


def prepare() -> None:
    """Set the defaults."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if {"PREFECT_HOME", "PREFECT_PROFILE"} & set(os.environ):
        return
    prefect_home = home() / "prefect"
    prefect_home.mkdir(parents=True, exist_ok=True)
    os.environ["PREFECT_HOME"] = str(prefect_home)
    if "PREFECT_API_URL" not in os.environ and (api := _running_ui()) is not None:
        os.environ["PREFECT_API_URL"] = api


def _running_ui() -> str | None:
    """Return the API address of a server that `slipway ui` started and that answers."""
    try:
        api = str(json.loads(ui_record().read_text())["api"])
        with urllib.request.urlopen(f"{api}/health", timeout=2):  # noqa: S310 (a loopback address of ours)
            return api
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return None


prepare()
