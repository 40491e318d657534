"""The SHA-256 list that a version may bring along: `assets.extra/SHA256SUMS`, in the form of sha256sum.

Whoever publishes a version may list its files there. Where there is a list it is checked before the version
is loaded, by the thread that loads it; a file that was changed, added or removed refuses the version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from model_server.base.status import Code, StatusError

LIST = "assets.extra/SHA256SUMS"
_OWNERS = "assets.extra/answers/"
"""Files that a publisher keeps for itself: no server reads them, and most may not."""
_CHUNK_BYTES = 2**20


def verify(directory: Path) -> None:
    """Raise StatusError (DATA_LOSS) unless the files are those of the list; without one nothing is read."""
    try:
        listed = dict(map(_parsed, (directory / LIST).read_text().splitlines()))
    except FileNotFoundError:
        return
    except ValueError:
        raise StatusError(Code.DATA_LOSS, f"{directory / LIST} is no list as sha256sum writes it") from None
    found = dict(_files(directory))
    for name in sorted({*listed, *found}):
        if name.startswith(_OWNERS):
            continue
        if problem := _problem(listed.get(name), found.get(name)):
            raise StatusError(Code.DATA_LOSS, f"{directory / name} {problem} {LIST} was written")


def _problem(listed: str | None, file: Path | None) -> str:
    if file is None:
        return "is missing: it was there when"
    if listed is None:
        return "was added after"
    return "" if _digest(file) == listed else "has changed since"


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    for path in directory.rglob("*"):
        name = path.relative_to(directory).as_posix()
        if name != LIST and not name.startswith(_OWNERS) and path.is_file():
            yield name, path


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _parsed(line: str) -> tuple[str, str]:
    """Return name and digest; a line that begins with a backslash has its name escaped."""
    digest, name = line.removeprefix("\\").split("  ", 1)
    if line.startswith("\\"):
        name = "\\".join(part.replace("\\n", "\n") for part in name.split("\\\\"))
    return name, digest
