"""Where `slipway ui` listens, while it runs."""

from __future__ import annotations

import http.client
import json
import urllib.request
from pathlib import Path

from configs.home import home


def ui_record() -> Path:
    """Return the file in which `slipway ui` notes the address of its API while it runs."""
    return home() / "servers" / ".prefect-ui.json"


def ui_api() -> str | None:
    """Return the API address of a server that `slipway ui` started and that answers."""
    try:
        api = str(json.loads(ui_record().read_text())["api"])
        with urllib.request.urlopen(f"{api}/health", timeout=2):  # noqa: S310 (a loopback address of ours)
            return api
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return None
