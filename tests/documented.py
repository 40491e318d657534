"""The documentation as tests read it: pages, links, and the commands of console blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from slipway_command import REPOSITORY

PAGES = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")])

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"^```.*?^```$|`[^`]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def named(page: Path) -> str:
    """Return a page's path as people say it."""
    return str(page.relative_to(REPOSITORY))


def links(page: Path) -> list[str]:
    """Return the targets of a page's links that are files here, without anchors."""
    found = _LINK.findall(_CODE.sub("", page.read_text()))
    return [target.partition("#")[0] for target in found if "://" not in target and target[0] != "#"]


def commands(page: Path) -> list[str]:
    """Return what the page's console blocks have the user type, continued lines joined."""
    typed: list[str] = []
    for block in _BLOCK.findall(page.read_text()):
        for line in block.splitlines():
            if line.startswith("$ "):
                typed.append(line[2:])
            elif typed and typed[-1].endswith("\\"):
                typed[-1] = typed[-1][:-1] + line.removeprefix("> ").strip()
    return [_without_comment(line) for line in typed]


def _without_comment(line: str) -> str:
    return re.split(r"\s{2,}#", line)[0].rstrip()


def inline(page: Path) -> Iterator[str]:
    """Yield each `slipway …` and `make …` that stands in a sentence or a table."""
    yield from re.findall(r"`((?:slipway|make) [^`]+)`", page.read_text())
