"""Prefect's SQLite file: moved aside if it is damaged, and only then."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tasks.state import prefect_database


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database of 50 pages or so, with a table and an index."""
    file = tmp_path / "prefect.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("create table flow_run (id text primary key, name text)")
        rows = ((f"{number:08}" * 5, "a run" * 10) for number in range(2000))
        connection.executemany("insert into flow_run values (?, ?)", rows)
    return file


def _overwrite(file: Path, place: int, content: bytes) -> None:
    whole = bytearray(file.read_bytes())
    whole[place : place + len(content)] = content
    file.write_bytes(whole)


NOISE = random.Random(1).randbytes(4096)
DAMAGES: dict[str, Callable[[Path], object]] = {
    "no database at all": lambda file: file.write_bytes(NOISE * 5),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "its schema overwritten": lambda file: _overwrite(file, 100, NOISE[:2000]),
    "a page overwritten": lambda file: _overwrite(file, 3 * 4096, NOISE),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_moved_aside(database: Path, damage: str) -> None:
    """With its log, which belongs to it; the message names the file and what becomes of the history."""
    DAMAGES[damage](database)
    content = database.read_bytes()
    database.with_name("prefect.db-wal").write_bytes(b"")
    told = prefect_database.set_aside_if_damaged(database)
    assert told is not None
    assert told.startswith(f"{database} is damaged (")
    assert not database.exists()
    assert not database.with_name("prefect.db-wal").exists()
    assert database.with_name("prefect.db.damaged").read_bytes() == content
    assert prefect_database.set_aside_if_damaged(database) is None


def test_a_sound_one_stays(database: Path) -> None:
    """Also while another process writes to it, and one that is empty, which SQLite takes for a new one."""
    assert prefect_database.set_aside_if_damaged(database) is None
    with closing(sqlite3.connect(database)) as writer:
        writer.execute("begin exclusive")
        assert prefect_database.set_aside_if_damaged(database) is None
    database.write_bytes(b"")
    assert prefect_database.set_aside_if_damaged(database) is None
    assert database.exists()


@pytest.mark.parametrize(
    ("url", "file"),
    [
        (None, "/home/prefect.db"),
        ("sqlite+aiosqlite:////data/prefect.db", "/data/prefect.db"),
        ("sqlite+aiosqlite:////data/prefect.db?timeout=5", "/data/prefect.db"),
        ("sqlite+aiosqlite:///:memory:", None),
        ("postgresql+asyncpg://prefect:secret@postgres/prefect", None),
    ],
)
def test_the_file_is_that_of_the_connection(url: str | None, file: str | None) -> None:
    """Another database is not looked at."""
    found = prefect_database.file_of(url, Path("/home"))
    assert found == (Path(file) if file else None)
