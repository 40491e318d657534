"""Every state file x every damage x every command: nobody has to help, and an approved version serves.

One world in this process: a model whose versions 1 and 2 are deployed to a tiny server, put back to that
state before each case. docs/reference/damage.md has the table that the tests print.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import damage_cases
import pytest
import tiny_worlds
from damage_cases import COMMANDS, FILES
from damages import DAMAGES
from slipway_command import REPOSITORY
from tiny_worlds import NAME, World

from tasks.deploys import rolling_back
from tasks.state import deploy_journal

PAGE = REPOSITORY / "docs" / "reference" / "damage.md"
Rows = dict[tuple[str, str], dict[str, str]]
"""By file and command, each damage and what it came to: `named`, nothing, or an error."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Versions 1 and 2 are deployed."""
    with tiny_worlds.opened(tmp_path_factory.mktemp("damage")) as made:
        yield made


@pytest.fixture(autouse=True)
def home(world: World) -> Path:
    """In place of a home for each test: all share the world's."""
    return world.home


READ = {
    "servers/<model>.json": COMMANDS,
    "servers/<model>.replaced.json": ("rollback",),
    "runs/<pipeline>/deploy.json": ("recover", "next run", "rollback"),
    "runs/<pipeline>/.running": ("recover",),
    "runs/<pipeline>/<run>/verdict.json": ("status",),
    "<model_base_path>/.highest_version": COMMANDS,
    "<model_base_path>/.published": ("recover", "next run", "rollback"),
}
"""Which commands, with the run after them, read a file: they name one that is damaged."""
UNDETECTED = {
    "runs/<pipeline>/.running": ("one bit flipped",),
    "runs/<pipeline>/<run>/verdict.json": ("one bit flipped",),
}
"""Files without a checksum: nothing that serves depends on them."""


QUICK = {
    ("servers/<model>.json", "next run"), ("runs/<pipeline>/deploy.json", "recover"),
    ("runs/<pipeline>/.running", "next run"), ("<model_base_path>/.highest_version", "next run"),
    ("<model_base_path>/.published", "rollback"),
}  # fmt: skip
"""Cases that `make test` has time for."""


class TestEveryFile:
    """The file is damaged before the command; then the next run deploys all the same."""

    @pytest.fixture(scope="class")
    def rows(self) -> Iterator[Rows]:
        """What the cases came to; the table is printed at the end."""
        rows: Rows = {}
        yield rows
        sys.stdout.write(f"\n\n{_table(rows)}\n")

    @pytest.mark.parametrize(
        ("name", "command"),
        [pytest.param(name, command, marks=() if (name, command) in QUICK else pytest.mark.extended)
         for name in FILES for command in COMMANDS],
    )  # fmt: skip
    def test_every_damage(
        self, world: World, name: str, command: str, rows: Rows, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One server answers with an approved version; the file is named if the command reads it."""
        rows[name, command] = {
            damage: damage_cases.outcome(world, name, command, damage, caplog) for damage in DAMAGES
        }
        assert {key: told for key, told in rows[name, command].items() if told not in ("named", "")} == {}
        if command in READ.get(name, ()):
            due = set(DAMAGES) - {"missing", "newer"} - set(UNDETECTED.get(name, ()))
            assert {key for key, told in rows[name, command].items() if told == "named"} >= due

    def test_the_page_has_the_table(self, rows: Rows) -> None:
        """docs/reference/damage.md, row by row, as far as the cases ran."""
        page = PAGE.read_text()
        assert [line for line in _table(rows).splitlines()[2:] if "—" not in line and line not in page] == []


def _table(rows: Rows) -> str:
    """Return the number of damages that were survived, and of those named, by file and command."""
    lines = [f"| file | {' | '.join(COMMANDS)} |", f"|---|{'---|' * len(COMMANDS)}"]
    for name in FILES:
        cells = []
        for command in COMMANDS:
            told = rows.get((name, command))
            survived = [each for each in (told or {}).values() if each in ("named", "")]
            by_chance = UNDETECTED.get(name, ())
            named = sum(each == "named" for key, each in (told or {}).items() if key not in by_chance)
            shown = f"{len(survived)} of {len(told or {})}{f', {named} named' if named else ''}"
            cells.append("—" if told is None else shown)
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_a_live_version_whose_folder_was_removed_is_rolled_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has it in memory still; the version before is restored, and nothing is left to undo."""
    world.restore("deployed")
    monkeypatch.setattr(rolling_back, "_live", lambda _run: 3)
    world.do("rollback")
    assert world.live() == 2
    assert deploy_journal.read(NAME) is None
