"""Which tests `make test` runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import selections
from selections import Keep, Move

HERE = Path(__file__).parent


def test_a_module_keeps_some_or_moves_some() -> None:
    """By the beginning of the name; a new test of a module that keeps some is extended."""
    assert not Keep(("TestA::", "test_b[x]")).is_extended("TestA::test_new")
    assert Keep(("TestA::", "test_b[x]")).is_extended("test_b[y]")
    assert Keep(()).is_extended("test_a")
    assert Move(("test_b[x]",)).is_extended("test_b[x]")
    assert not Move(("test_b[x]",)).is_extended("test_new")


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"test_gone": Keep(())}, "test_gone: no such module"),
        ({"test_cli": Move(("test_gone",))}, "test_cli: no test begins with 'test_gone'"),
        ({"test_cli": Move(("test_the",)), "test_init": Keep(("test_not_collected",))}, ""),
    ],
)
def test_an_entry_that_fits_no_test_is_named(
    table: dict[str, Keep | Move], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test that was renamed is not silently left out, nor run where it is slow."""
    monkeypatch.setattr(selections, "EXTENDED", table)
    assert selections.stale({"test_cli": ["test_the_help"]}, HERE) == problem


def test_every_module_of_the_fast_tests_exists() -> None:
    """`make test-fast` names files; pytest would run none if one is missing."""
    assert [name for name in selections.FAST if not (HERE / f"test_{name}.py").is_file()] == []


def test_each_subject_keeps_a_quick_test() -> None:
    """A module that is extended whole names the quick module that covers its subject."""
    whole = {module for module, entry in selections.EXTENDED.items() if entry == Keep(())}
    assert whole == set(selections.COVERED_BY)
    for covering in selections.COVERED_BY.values():
        assert (HERE / f"{covering}.py").is_file() and covering not in whole
