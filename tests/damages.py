"""Damages of state files, as crashes, disks and people make them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from tasks.state import state_files


def _cut(file: Path, chosen: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: chosen.randrange(1, file.stat().st_size - 2)])


def _flip(file: Path, chosen: random.Random) -> None:
    """Flip one bit of a name or a value; white space between them is no content."""
    content = bytearray(file.read_bytes())
    places = [place for place, byte in enumerate(content) if chr(byte).isalnum()]
    content[chosen.choice(places)] ^= 1 << chosen.randrange(8)
    file.write_bytes(content)


def _make_newer(file: Path, _: random.Random) -> None:
    """Rewrite the file as a release with more fields would; what is no JSON gets a line more."""
    try:
        fields = dict(json.loads(file.read_bytes()))
    except ValueError:
        file.write_text(f"{file.read_text()}\nnovel: {{by: a newer release}}\n")
        return
    fields |= {"novel": {"by": "a newer release"}, "schema": 2}
    if fields.pop("sha256", None) is not None:
        fields["sha256"] = state_files._checksum(fields)
    file.write_text(json.dumps(fields))


def _make_unreadable(file: Path, _: random.Random) -> None:
    """Have each read fail, for root too: a symbolic link to itself."""
    file.unlink()
    file.symlink_to(file)


def _make_folder(file: Path, _: random.Random) -> None:
    file.unlink()
    (file / "inside").mkdir(parents=True)


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "missing": lambda file, _: file.unlink(),
    "emptied": lambda file, _: file.write_bytes(b"") and None,
    "cut": _cut,
    "one bit flipped": _flip,
    "newer": _make_newer,
    "unreadable": _make_unreadable,
    "a folder": _make_folder,
}
