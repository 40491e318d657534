"""kill -9 of a command in a tiny world, at a random point that a seed repeats."""

from __future__ import annotations

import os
import random
import signal
import sys
import traceback

from tiny_worlds import NAME, World
from waiting import eventually

from tasks.state import deploy_journal, model_versions, version_checksums

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "subprocess.Popen")


def counted(world: World) -> dict[str, int]:
    """Return how many events each command has."""
    counts = {}
    for command in ("next run", "rollback"):
        status, counts[command] = _done(world, command)
        assert status == 0
    sys.stdout.write(f"events: {counts}\n")
    assert min(counts.values()) > 30
    return counts


def survived(world: World, events: dict[str, int], seed: int) -> None:
    """Kill a command at an event; the next run deploys, one server answers, every version is whole."""
    chosen = random.Random(seed)
    command = chosen.choice(("next run", "next run", "rollback"))
    status, _ = _done(world, command, chosen.randrange(1, events[command] + 1))
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    world.next_run("r4")
    present = model_versions.published(world.base)
    assert world.live() == max(present) > 2
    assert deploy_journal.read(NAME) is None
    for folder in present.values():
        version_checksums.require_unchanged(folder)
    eventually(lambda: len(world.servers()) == 1)


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
        os.write(2, "".join(traceback.format_exception(error)).encode())
    finally:
        os._exit(1)
    raise AssertionError
