"""Where `slipway ui` listens, while it runs, and the credentials of the Prefect servers of this home."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from configs.schema.home import home

_TRIES, _SECONDS_BETWEEN_TRIES = 20, 0.05


def ui_record() -> Path:
    """Return the file in which `slipway ui` notes the address of its API while it runs."""
    return home() / "servers" / ".prefect-ui.json"


def ui_api() -> str | None:
    """Return the API address of the server that `slipway ui` runs, once it answers.

    Nothing is requested: the record says so, and its lock whether the process that wrote it lives.
    """
    try:
        with ui_record().open("rb") as file:
            if try_lock(file, fcntl.LOCK_SH):
                return None  # `slipway ui` was killed
            record = _recorded()
            return str(record["api"]) if record["answers"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def recorded_ui(api: str, own_auth: bool) -> Iterator[Callable[[], None]]:
    """Record that this process serves the UI's API, for as long as the block takes.

    Yields what to call once the API answers. If another `slipway ui` of this home is on record, it stays.
    """
    ui_record().parent.mkdir(parents=True, exist_ok=True)
    record = {"api": api, "pid": os.getpid(), "own_auth": own_auth}
    with ui_record().open("a+") as file:
        for _ in range(_TRIES):  # a command may look at it just now
            if is_ours := try_lock(file, fcntl.LOCK_EX):
                break
            time.sleep(_SECONDS_BETWEEN_TRIES)

        def write(*, answers: bool) -> None:
            if is_ours:
                file.truncate(0)
                json.dump({**record, "answers": answers}, file)
                file.flush()

        write(answers=False)
        try:
            yield lambda: write(answers=True)
        finally:
            if is_ours:
                ui_record().unlink(missing_ok=True)


def try_lock(file: IO[Any], operation: int) -> bool:
    """Lock the file without waiting (LOCK_SH or LOCK_EX); return False if another process holds it."""
    try:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
