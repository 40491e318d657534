"""The documentation: its links lead somewhere, its commands exist, its index is whole."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from cyclopts import CycloptsError
from documented import PAGES, commands, inline, links, named
from slipway_command import REPOSITORY

from flows.command.cli import app

DOCS = REPOSITORY / "docs"
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
COMMANDS = {name for name in app if not name.startswith("-")}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    """Of every page, the pictures too."""
    assert [target for target in links(page) if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("folder", ["how-to", "reference"])
def test_the_index_names_every_page(folder: str) -> None:
    """A page that nobody finds is not there."""
    linked = {(DOCS / target).resolve() for target in links(DOCS / "README.md")}
    assert sorted((DOCS / folder).glob("*.md")) == sorted(
        page for page in linked if page.parent == DOCS / folder
    )


def _typed(page: Path) -> list[list[str]]:
    """Return the words of each simple command that the page has the user type."""
    simple = [part for line in commands(page) for part in re.split(r"\s*(?:&&|\|\||[;|&])\s*", line)]
    words = [shlex.split(line, comments=True) for line in simple if line.count("'") % 2 == 0]
    return [[each[0].removeprefix(".venv/bin/"), *each[1:]] for each in words if each]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_slipway_command_parses(page: Path) -> None:
    """With the sub-command, its arguments and its options as they stand there."""
    for program, *arguments in _typed(page):
        if program == "slipway":
            try:
                app.parse_args(arguments, exit_on_error=False, print_error=False)
            except CycloptsError as error:
                pytest.fail(f"slipway {shlex.join(arguments)}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_and_target_that_is_named_exists(page: Path) -> None:
    """In a sentence, a table or a console block."""
    said = [text.split()[:2] for text in inline(page)] + [words[:2] for words in _typed(page) if words[1:]]
    known = {"slipway": COMMANDS | {"COMMAND", "--help", "--version"}, "make": TARGETS}
    assert [words for words in said if words[0] in known and words[1] not in known[words[0]]] == []


def test_every_prefect_command_exists() -> None:
    """As this version of Prefect has them, sub-commands too."""
    from prefect.cli._app import _app

    for page in PAGES:
        for program, *words in _typed(page):
            if program == "prefect":
                command, *rest = [word for word in words if not word.startswith("-")]
                assert command in list(_app), f"{named(page)}: prefect {command}"
                if _app[command].default_command is None:
                    assert rest[0] in list(_app[command]), f"{named(page)}: prefect {command} {rest[0]}"
