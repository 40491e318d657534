"""Prefect's SQLite file, which holds what its UI shows: serving, training and resuming do not need it."""

from __future__ import annotations

import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from tasks.core import durable_files

_ASIDE = ".damaged"
_WITH_IT = ("", "-wal", "-shm", "-journal")
_SECONDS_TO_CHECK = 20.0
_STEPS_BETWEEN_LOOKS = 100_000


def file_of(connection_url: str | None, prefect_home: Path) -> Path | None:
    """Return the SQLite file of a connection URL, by default Prefect's own; None for another database."""
    if not connection_url:
        return prefect_home / "prefect.db"
    match = re.fullmatch(r"sqlite\+aiosqlite:///([^?]+)(\?.*)?", connection_url)
    return Path(match[1]) if match and ":memory:" not in match[1] else None


def set_aside_if_damaged(file: Path) -> str | None:
    """Move a database that SQLite cannot read to `<name>.damaged`; say so, or return None.

    Only for whoever may start its server: nobody may have it open. A damage that is not found within 20 s is
    left for the server to meet.
    """
    if not file.is_file():
        return None
    problem = _problem(file)
    if problem is None:
        return None
    for suffix in _WITH_IT:
        part = file.with_name(file.name + suffix)
        if part.is_file():
            part.replace(file.with_name(f"{file.name}{_ASIDE}{suffix}"))
    durable_files.sync(file.parent)
    return f"{file} is damaged ({problem}): moved to {file.name}{_ASIDE}; Prefect's history begins anew"


def _problem(file: Path) -> str | None:
    """Return what SQLite says is wrong; None if nothing is, or somebody else's lock hides it."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=rw", uri=True, timeout=1)) as database:
            ends = time.monotonic() + _SECONDS_TO_CHECK
            database.set_progress_handler(lambda: time.monotonic() > ends, _STEPS_BETWEEN_LOOKS)
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
            return None if found == "ok" else str(found)
    except sqlite3.OperationalError:
        return None  # locked, interrupted at the deadline, or not readable: no damage of its content
    except sqlite3.DatabaseError as error:
        return str(error)
