"""Where `slipway ui` listens, while it runs, and the credentials of the Prefect servers of this home."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from configs.home import home


def ui_record() -> Path:
    """Return the file in which `slipway ui` notes the address of its API while it runs."""
    return home() / "servers" / ".prefect-ui.json"


def ui_api() -> str | None:
    """Return the API address of a server that `slipway ui` started and that answers."""
    try:
        api = str(_recorded()["api"])
        with urllib.request.urlopen(f"{api}/health", timeout=2):  # noqa: S310 (a loopback address of ours)
            return api
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return None


def ui_auth_string(api: str) -> str | None:
    """Return the credentials, `user:password`, if `slipway ui` serves `api` with those of this home."""
    try:
        record = _recorded()
        return auth_string() if record["api"] == api.rstrip("/") and record["own_auth"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _recorded() -> dict[str, Any]:
    return dict(json.loads(ui_record().read_text()))


def auth_file() -> Path:
    """Return the file that holds what `auth_string` returns."""
    return home() / "prefect" / "api-auth-string"


def auth_string() -> str:
    """Return the credentials of this home's Prefect servers, `user:password`. The first call creates them.

    They stay the same, so that a worker outlives a restart of the server. The file's mode is 0600.
    """
    file = auth_file()
    try:
        found = file.read_text().strip()
        if found.partition(":")[2]:
            return found
        file.unlink()  # emptied or cut short
    except FileNotFoundError:
        pass
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # 0600 by itself
    try:
        with os.fdopen(descriptor, "w") as output:
            output.write(f"slipway:{secrets.token_urlsafe(24)}\n")
        os.link(partial, file)  # whole, and only if no other command was first
    except FileExistsError:
        pass
    finally:
        Path(partial).unlink()
    return file.read_text().strip()
