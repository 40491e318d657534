"""kill -9 at random points of a deploy or a rollback, by seeds: the next run needs no hand.

A point is the n-th file that is opened, renamed, made or removed, or program that is started, so that a seed
kills at the same point again. `make chaos` tries 200 seeds; SLIPWAY_CHAOS_SEED=N begins with another one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import random_kills
import tiny_worlds
from tiny_worlds import World

FIRST = int(os.environ.get("SLIPWAY_CHAOS_SEED", "0"))
KILLS = int(os.environ.get("SLIPWAY_CHAOS_KILLS", "20"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Versions 1 and 2 are deployed."""
    with tiny_worlds.opened(tmp_path_factory.mktemp("chaos")) as made:
        yield made


@pytest.fixture(autouse=True)
def home(world: World) -> Path:
    """In place of a home for each test: all share the world's."""
    return world.home


@pytest.fixture(scope="module")
def events(world: World) -> dict[str, int]:
    """How many events each command has."""
    return random_kills.counted(world)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + KILLS))
def test_the_next_run_deploys_after_a_kill(world: World, events: dict[str, int], seed: int) -> None:
    """One server answers with its version; the journal is concluded, and every version is whole."""
    random_kills.survived(world, events, seed)
