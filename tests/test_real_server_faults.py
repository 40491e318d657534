"""A sample of test_chaos.py and test_damage_matrix.py with the product's own server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import damage_cases
import pytest
import random_kills
import tiny_worlds
from model_server_fixtures import Models
from tiny_worlds import World

pytest_plugins = ["model_server_fixtures"]
pytestmark = pytest.mark.timeout(600)
CASES = {
    "servers/<model>.json": ("recover", "next run", "rollback"),
    "runs/<pipeline>/deploy.json": ("recover", "next run", "rollback"),
    "<model_base_path>/.published": ("recover", "next run", "rollback"),
}
DAMAGES = ("missing", "one bit flipped")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, models: Models) -> Iterator[World]:
    """Versions 1 and 2 are deployed."""
    folder = tmp_path_factory.mktemp("real")
    saved_model = models.publish(folder / "exported", 1)
    with tiny_worlds.opened(folder, saved_model) as made:
        yield made


@pytest.fixture(autouse=True)
def home(world: World) -> Path:
    """In place of a home for each test: all share the world's."""
    return world.home


@pytest.fixture(scope="module")
def events(world: World) -> dict[str, int]:
    """How many events each command has."""
    return random_kills.counted(world)


@pytest.mark.parametrize("seed", range(10))
def test_the_next_run_deploys_after_a_kill(world: World, events: dict[str, int], seed: int) -> None:
    """One server answers with its version; the journal is concluded, and every version is whole."""
    random_kills.survived(world, events, seed)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("name", "command"), [(name, command) for name, commands in CASES.items() for command in commands]
)
def test_the_next_run_deploys_after_a_damage(
    world: World, name: str, command: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One server answers with an approved version; a file that is damaged, not missing, is named."""
    found = damage_cases.outcome(world, name, command, damage, caplog)
    assert found in (("named", "") if damage == "missing" else ("named",))
