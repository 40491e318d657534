"""kill -9 at random points of a deploy or a rollback, by seeds: the next run needs no hand.

A point is the n-th file that is opened, renamed, made or removed, or program that is started, so that a seed
kills at the same point again. `make chaos` tries 200 seeds; SLIPWAY_CHAOS_SEED=N begins with another one.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_worlds
from tiny_worlds import NAME, World
from waiting import eventually

from tasks.state import deploy_journal, model_versions, version_seals

FIRST = int(os.environ.get("SLIPWAY_CHAOS_SEED", "0"))
KILLS = int(os.environ.get("SLIPWAY_CHAOS_KILLS", "20"))
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "subprocess.Popen")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Versions 1 and 2 are deployed."""
    with tiny_worlds.opened(tmp_path_factory.mktemp("chaos")) as made:
        yield made


@pytest.fixture(autouse=True)
def home(world: World) -> Path:
    """In place of a home for each test: all share the world's."""
    return world.home


def _done(world: World, command: str, kill_at: int = 0) -> tuple[int, int]:
    """Do it in a fork, killed at an event; return the wait status, and how many events there were."""
    world.restore("deployed")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        with os.fdopen(reader, "rb") as events:
            count = len(events.read())
        return os.waitpid(pid, 0)[1], count
    try:
        os.setsid()

        def hook(event: str, given: tuple[object, ...]) -> None:
            nonlocal kill_at
            if event in EVENTS and (event == "subprocess.Popen" or str(world.folder) in str(given[0])):
                os.write(writer, b".")
                kill_at -= 1
                if kill_at == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        os.set_inheritable(writer, False)
        sys.addaudithook(hook)
        world.do(command)
        os._exit(0)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(1)
    raise AssertionError


@pytest.fixture(scope="module")
def events(world: World) -> dict[str, int]:
    """How many events each command has."""
    counts = {}
    for command in ("next run", "rollback"):
        status, counts[command] = _done(world, command)
        assert status == 0
    sys.stdout.write(f"events: {counts}\n")
    assert min(counts.values()) > 30
    return counts


@pytest.mark.parametrize("seed", range(FIRST, FIRST + KILLS))
def test_the_next_run_deploys_after_a_kill(world: World, events: dict[str, int], seed: int) -> None:
    """One server answers with its version; the journal is concluded, and every version is whole."""
    chosen = random.Random(seed)
    command = chosen.choice(("next run", "next run", "rollback"))
    status, _ = _done(world, command, chosen.randrange(1, events[command] + 1))
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    world.next_run("r4")
    present = model_versions.published(world.base)
    assert world.live() == max(present) > 2
    assert deploy_journal.read(NAME) is None
    for folder in present.values():
        version_seals.require_unchanged(folder)
    eventually(lambda: len(world.servers()) == 1)
