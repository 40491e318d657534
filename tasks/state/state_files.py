"""State files: one JSON object each, with a schema version and a checksum, written durably.

    {"number": 8, "schema": 1, "sha256": "…"}

The checksum covers every other field, so a cut, emptied or bit-flipped file is detected instead of believed.
Fields that a newer release added are read and left to the caller to ignore.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.core import durable_files

SCHEMA = 1


class StateFileDamaged(Exception):
    """The file exists and its content cannot be trusted; the message names the file and the damage."""


def write(file: Path, fields: Mapping[str, Any], *, readable: bool = False) -> None:
    """Replace the file durably. `fields` must be JSON. A folder in the file's place is moved aside.

    A `readable` file can be read by other users, whatever the umask.
    """
    content = {**fields, "schema": SCHEMA}
    text = json.dumps({**content, "sha256": _checksum(content)}, indent=2) + "\n"
    durable_files.move_folder_aside(file)
    durable_files.write(file, text.encode(), mode=0o644 if readable else None)


def read(file: Path) -> dict[str, Any] | None:
    """Return the fields, or None if there is no such file. Raises StateFileDamaged."""
    try:
        fields = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateFileDamaged(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise StateFileDamaged(f"{file}: not JSON, or cut short") from None
    if not isinstance(fields, dict) or "sha256" not in fields:
        raise StateFileDamaged(f"{file}: no checksum")
    if fields.pop("sha256") != _checksum(fields):
        raise StateFileDamaged(f"{file}: content does not match its checksum")
    fields.pop("schema", None)
    return fields


def remove(file: Path) -> None:
    """Remove the file durably. A folder in its place is moved aside."""
    durable_files.move_folder_aside(file)
    file.unlink(missing_ok=True)
    if file.parent.is_dir():
        durable_files.sync(file.parent)


def _checksum(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
