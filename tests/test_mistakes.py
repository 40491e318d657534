"""The documentation's table of mistakes: `slipway check` finds each, and prints the message that it shows."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from slipway_command import REPOSITORY

from configs.loading.model_checks import require_buildable
from configs.loading.pipelines import load_pipeline
from configs.loading.references import require_callables
from flows.command.cli import main

_spec = importlib.util.spec_from_file_location("mistakes", REPOSITORY / "docs" / "mistakes.py")
assert _spec is not None
assert _spec.loader is not None
mistakes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mistakes)

ROWS = dict(
    line.removeprefix("| ").removesuffix(" |").split(" | ", 1)
    for line in (REPOSITORY / "docs" / "reference" / "mistakes.md").read_text().splitlines()
    if line.startswith("| ")
)
"""Mistake to the cell with its message, as the page has them."""


def test_without_them_it_is_valid(tmp_path: Path) -> None:
    """Else the table would show that pipeline's mistake."""
    mistakes.write(tmp_path / "houses", {})
    loaded = load_pipeline(tmp_path / "houses")
    require_callables(loaded)
    require_buildable(loaded)


def test_there_are_more_than_forty() -> None:
    """All of them on the page, and none that has the message of another."""
    assert len(mistakes.MISTAKES) > 50
    assert set(ROWS) == {*mistakes.MISTAKES, "mistake"}
    places = re.compile(r"^houses/pipeline\.yaml(:\d+:\d+)?: ")
    assert all(places.match(ROWS[mistake]) for mistake in mistakes.MISTAKES)


@pytest.mark.parametrize("mistake", mistakes.MISTAKES)
def test_check_says_what_the_page_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    """Exit code 2, on standard error, with the place in the YAML."""
    folder = tmp_path.resolve() / "houses"
    mistakes.write(folder, mistakes.MISTAKES[mistake])
    assert main(["check", str(folder)]) == 2
    said = _plain(capsys.readouterr().err.replace(f"{tmp_path.resolve()}/", ""))
    shown = re.sub(r"\\([|<*])", r"\1", ROWS[mistake])
    message, _, hint = shown.removesuffix("*").partition(" *")
    assert _plain(message) in said
    assert _plain(hint) in said


def _plain(text: str) -> str:
    """Return the text without what a terminal's width changes."""
    return "".join(text.split())
