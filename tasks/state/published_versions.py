"""Which versions a run published: `<model_base_path>/.published`, a state file.

    {"versions": {"7": "<SHA-256 of the version's SHA256SUMS>"}, …}

Our server, started with MODEL_SERVER_PUBLISHED_ONLY=true, serves no other: a folder that somebody copied
there is ignored. A version is listed before its rename and leaves the list when it is withdrawn or removed.
Nobody else than `model_versions` changes it, under its lock. It tells accidents from deploys: whoever may
write the base path may write the list too.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

from tasks.state import state_files, version_checksums
from tasks.state.state_files import StateFileDamaged

NAME = ".published"
_log = logging.getLogger(__name__)


def listed(base: Path) -> dict[int, str] | None:
    """Return the published versions, number to digest; None if there is no list, or it is damaged."""
    try:
        fields = state_files.read(base / NAME)
        return None if fields is None else {int(key): str(value) for key, value in fields["versions"].items()}
    except (StateFileDamaged, KeyError, AttributeError, ValueError) as error:
        _log.warning("%s: ignoring the list of published versions", error)
        return None


def only(base: Path, versions: Mapping[int, Path]) -> dict[int, Path]:
    """Return those that a run published; all of them if the base path has no list."""
    known = listed(base)
    if known is None:
        return dict(versions)
    return {number: folder for number, folder in versions.items() if known.get(number) == digest(folder)}


def digest(folder: Path) -> str:
    """Return the SHA-256 of the version's list of files; "" if it has none: another program's."""
    try:
        return hashlib.sha256((folder / version_checksums.FILE).read_bytes()).hexdigest()
    except OSError:
        return ""


def write(base: Path, versions: Mapping[int, str]) -> None:
    """Replace the list, durably. Servers read it as another user."""
    fields = {"versions": {str(number): value for number, value in sorted(versions.items())}}
    state_files.write(base / NAME, fields, readable=True)


def remove(base: Path) -> None:
    """Remove the list: servers are to serve whatever is there."""
    state_files.remove(base / NAME)
