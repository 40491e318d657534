"""A model's base path on disk: which versions are there, and whether their files still change."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

# saved_model.pb tells a version that is there from one that is being copied or has just gone.
SAVED_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class Fingerprint:
    """What a directory holds: names, sizes in bytes and modification times of all its files.

    `changed_at` is when the newest was written, linked or given its name, in seconds since the epoch; a
    copy that keeps modification times does not fool it. It does not count in comparisons.
    """

    files: frozenset[tuple[str, int, int]] = frozenset()
    changed_at: float = field(default=0.0, compare=False)


NO_FILES = Fingerprint()


def has_saved_model(directory: Path) -> bool:
    """Tell whether `directory` is a SavedModel that a writer has finished or is about to."""
    return any((directory / name).is_file() for name in SAVED_MODEL_FILES)


def find(base_path: Path) -> dict[int, list[Path]]:
    """Return the versions under `base_path`, by number. Raises OSError where it cannot be listed.

    A version's name is an int64, leading zeros allowed; "temp-1" and "2.denied" are none. Where several
    names mean one number, as "001" and "1", the last one is the version (file_system_storage_path_source.cc).
    """
    found: dict[int, list[Path]] = {}
    for child in sorted(base_path.iterdir()):
        if re.fullmatch(r"-?[0-9]+", child.name) and int(child.name) in _INT64 and has_saved_model(child):
            found.setdefault(int(child.name), []).append(child)
    return found


def fingerprint(directory: Path) -> Fingerprint:
    """Look at all files under `directory`; there are none if it is gone."""
    seen = set()
    changed_at = 0.0
    for path in directory.rglob("*"):
        try:
            stat = path.stat()
        except OSError:
            continue
        seen.add((str(path.relative_to(directory)), stat.st_size, stat.st_mtime_ns))
        if path.is_file():
            changed_at = max(changed_at, stat.st_ctime)
    return Fingerprint(frozenset(seen), changed_at)


def age(found: Fingerprint) -> float:
    """Seconds since the newest file changed, by this machine's clock."""
    return time.time() - found.changed_at
