"""Where a SavedModel that was trained elsewhere lies. No TensorFlow here."""

from __future__ import annotations

from pathlib import Path

_FILES = ("saved_model.pb", "saved_model.pbtxt")


def found_in(path: Path) -> Path | None:
    """Return the folder that holds the SavedModel: `path`, or its highest version; None if there is none."""
    if is_saved_model(path):
        return path
    numbered = [each for each in path.glob("*") if each.name.isdecimal() and is_saved_model(each)]
    return max(numbered, key=lambda each: int(each.name), default=None)


def is_saved_model(path: Path) -> bool:
    """Return whether a folder holds a SavedModel."""
    return any((path / name).is_file() for name in _FILES)
