"""The ephemeral Prefect server: one per home, shared, gone with its last user; and its failures."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from slipway_command import REPOSITORY, Slipway, user_environment
from waiting import eventually

USER = """
import sys
import flows.environment
from flows.command import ephemeral_server
ephemeral_server.require_api(lambda text: None)
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    client.api_version()
    print(client.api_url, flush=True)
sys.stdin.read()
"""


def _user(home: Path) -> subprocess.Popen[str]:
    """A command that needs Prefect until its stdin is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", USER], cwd=REPOSITORY, env=user_environment(home), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def _servers(home: Path) -> list[psutil.Process]:
    """The servers whose log is in this home: each has it open as its output."""
    log = str(home / "prefect" / "ephemeral-server.log")
    found = []
    for process in psutil.process_iter():
        try:
            if any(file.path == log for file in process.open_files()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_commands_share_it_and_it_ends_with_the_last(home: Path) -> None:
    """Started at the same time, two use one server; it outlives a killed one, and nothing is left."""
    first, second = _user(home), _user(home)
    assert first.stdout and second.stdout and second.stdin
    addresses = {first.stdout.readline(), second.stdout.readline()}
    assert len(addresses) == 1
    api = addresses.pop().strip()
    assert api.startswith("http://127.0.0.1:")
    assert len(_servers(home)) == 1
    refused = httpx.post(f"{api}/flows/filter", json={}, headers={"Origin": "http://elsewhere.example"})
    assert refused.status_code == 401
    first.kill()
    first.wait()
    third = _user(home)
    assert third.stdout and third.stdin
    assert third.stdout.readline().startswith("http://127.0.0.1:")
    assert len(_servers(home)) == 1
    second.stdin.close()
    third.kill()
    assert (second.wait(60), third.wait(60)) == (0, -9)
    eventually(lambda: not _servers(home), 30)


DYING = """
import fcntl, pathlib, sys, time
with pathlib.Path(sys.argv[1]).open("a+b") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(b'{"api": "http://127.0.0.1:9/api"}')
    file.flush()
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_one_that_is_about_to_end_is_replaced(home: Path) -> None:
    """Its last user had gone when the next command came: it releases one lock before the other."""
    alive = home / "prefect" / "ephemeral-server.json"
    alive.parent.mkdir(parents=True)
    dying = subprocess.Popen(
        [sys.executable, "-c", DYING, alive], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert dying.stdin and dying.stdout and dying.stdout.readline() == "locked\n"
    user = _user(home)
    assert user.stdout and user.stdin
    eventually((home / "prefect" / "ephemeral-server.users").exists)
    time.sleep(1)
    dying.stdin.close()
    assert dying.wait(60) == 0
    assert user.stdout.readline().startswith("http://127.0.0.1:")
    user.stdin.close()
    assert user.wait(60) == 0
    eventually(lambda: not _servers(home), 30)


@pytest.mark.slow
def test_a_damaged_database_is_moved_aside(home: Path) -> None:
    """A night without PREFECT_API_URL needs no hand: Prefect begins a new history, the old file is kept."""
    file = home / "prefect" / "prefect.db"
    file.parent.mkdir(parents=True)
    file.write_bytes(random.Random(1).randbytes(20_000))
    user = _user(home)
    assert user.stdout and user.stdin
    assert user.stdout.readline().startswith("http://127.0.0.1:")
    user.stdin.close()
    assert user.wait(60) == 0
    assert file.with_name("prefect.db.damaged").stat().st_size == 20_000
    eventually(lambda: not _servers(home), 30)


def test_past_its_deadline_the_error_names_the_way_out(home: Path) -> None:
    """It is the environment's fault, and the hint is what to type; the server ends with the command."""
    slipway = Slipway(home, None)
    failed = slipway.run(
        REPOSITORY / "configs" / "digits", PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="0"
    )
    assert failed.exit_code == 1
    error = failed.verdict["error"]
    assert error["class"] == "EnvironmentFault"
    assert "the ephemeral Prefect server did not answer within 0 s" in error["message"]
    assert "slipway ui" in error["hint"] and "PREFECT_API_URL" in error["hint"]
    eventually(lambda: not _servers(home), 30)


def test_a_server_that_ends_is_reported_with_its_log(home: Path) -> None:
    """At once, not at the deadline."""
    started = time.monotonic()
    failed = Slipway(home, None).run(
        REPOSITORY / "configs" / "digits",
        PREFECT_API_DATABASE_CONNECTION_URL="sqlite+aiosqlite:////nowhere/prefect.db",
    )
    assert time.monotonic() - started < 300
    assert failed.verdict["error"]["class"] == "EnvironmentFault"
    assert "the ephemeral Prefect server ended: its log is " in failed.verdict["error"]["message"]
    assert "unable to open database file" in failed.verdict["error"]["message"]
