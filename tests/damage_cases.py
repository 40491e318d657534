"""A damaged state file, a command, and the next run, in a tiny world."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from damages import DAMAGES
from tiny_worlds import NAME, World

from tasks.runs import run_folders
from tasks.state import deploy_journal, published_versions, server_records

COMMANDS = ("recover", "next run", "rollback", "status")
FILES: dict[str, Callable[[World], Path]] = {
    "servers/<model>.json": lambda world: server_records._file(NAME),
    "servers/<model>.replaced.json": lambda world: server_records._file(NAME, ".replaced"),
    "runs/<pipeline>/deploy.json": lambda world: deploy_journal.file(NAME),
    "runs/<pipeline>/<run>/deploy.json": lambda world: deploy_journal.filed(NAME, "r1"),
    "runs/<pipeline>/.running": lambda world: run_folders.runs_folder(NAME) / ".running",
    "runs/<pipeline>/<run>/verdict.json": lambda world: world.run("r2").folder / "verdict.json",
    "runs/<pipeline>/<run>/config.yaml": lambda world: world.run("r2").folder / "config.yaml",
    "runs/<pipeline>/<run>/.flow_run": lambda world: world.run("r2").folder / ".flow_run",
    "runs/<pipeline>/<run>/.started": lambda world: world.run("r2").folder / ".started",
    "<model_base_path>/.highest_version": lambda world: world.base / ".highest_version",
    "<model_base_path>/.published": lambda world: world.base / ".published",
}


def outcome(world: World, name: str, command: str, damage: str, caplog: pytest.LogCaptureFixture) -> str:
    """Return `named` if a message names the file, nothing if none does, or the error."""
    try:
        return _case(world, name, command, damage, caplog)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _case(world: World, name: str, command: str, damage: str, caplog: pytest.LogCaptureFixture) -> str:
    world.restore("unfinished" if name == "runs/<pipeline>/deploy.json" else "deployed")
    file = FILES[name](world)
    if not file.exists():
        record = server_records.read(NAME)
        assert record is not None
        server_records.set_aside(replace(record, handle="999999999:0"))
    caplog.clear()
    DAMAGES[damage](file, random.Random(f"{name} {command} {damage}"))
    with caplog.at_level(logging.WARNING):
        told = world.do(command)
    live = world.live()
    expected = {"rollback": (1,), "next run": (3,)}.get(command, (1, 2))
    assert live in expected, f"version {live} serves, expected {expected}"
    if command != "status":
        assert live in (published_versions.listed(world.base) or ()), "the list of published versions is lost"
    world.next_run("r4")
    assert world.live() > max(expected)
    assert len(world.servers()) == 1, world.servers()
    return "named" if str(file) in f"{told}\n{caplog.text}" else ""
