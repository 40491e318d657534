"""A model's base path on disk: which versions are there, and whether their files have changed."""

from __future__ import annotations

import re
from pathlib import Path

# saved_model.pb tells a version that is there from one that is being copied or has just gone.
SAVED_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")
_INT64 = range(-(2**63), 2**63)

Fingerprint = frozenset[tuple[str, int, int]]


def has_saved_model(directory: Path) -> bool:
    """Tell whether `directory` is a SavedModel that a writer has finished or is about to."""
    return any((directory / name).is_file() for name in SAVED_MODEL_FILES)


def find(base_path: Path) -> dict[int, Path]:
    """Return the versions under `base_path`, by number. Raises OSError where it cannot be listed.

    A version's name is an int64; "temp-1" and "2.withdrawn" are none. Of "1" and "001" the latter wins.
    """
    return {
        int(child.name): child
        for child in sorted(base_path.iterdir(), reverse=True)
        if re.fullmatch(r"-?[0-9]+", child.name) and int(child.name) in _INT64 and has_saved_model(child)
    }


def fingerprint(directory: Path) -> Fingerprint:
    """Names, sizes in bytes and modification times of all files under `directory`; empty if it is gone."""
    seen = set()
    for path in directory.rglob("*"):
        try:
            stat = path.stat()
        except OSError:
            continue
        seen.add((str(path.relative_to(directory)), stat.st_size, stat.st_mtime_ns))
    return frozenset(seen)
