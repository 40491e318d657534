"""The SHA-256 list of a version's files, in the form of sha256sum: `assets.extra/SHA256SUMS`.

It is written last before a version appears, and names every file but itself. `sha256sum -c
assets.extra/SHA256SUMS` in the version's folder checks it; so does our model server before it loads a
version, and the pipeline before it serves one or rolls back to it. TensorFlow reads none of it.

It finds damage, half copies and edits. It is no signature: who may write there may write the list too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from configs.schema.export import CHECKSUMS
from tasks.core.errors import EnvironmentFault

FILE = Path("assets.extra") / CHECKSUMS
_CHUNK_BYTES = 2**20
_SHOWN = 3


def write(folder: Path) -> None:
    """Write the list of the files that are in `folder` now."""
    lines = [_line(digest, name) for name, digest in _digests(folder)]
    (folder / FILE).parent.mkdir(exist_ok=True)
    (folder / FILE).write_text("".join(lines))


def require_unchanged(folder: Path) -> None:
    """Raise EnvironmentFault where files are not what they were when the version was published.

    A version without a list (put there by hand, or by another release) is taken as it is.
    """
    try:
        listed = dict(map(_parsed, (folder / FILE).read_text().splitlines()))
    except FileNotFoundError:
        return
    except ValueError:
        raise EnvironmentFault(f"{folder / FILE} is damaged", _hint(folder)) from None
    found = dict(_digests(folder))
    problems = [
        *(f"{name} is missing" for name in listed if name not in found),
        *(f"{name} was not there" for name in found if name not in listed),
        *(f"{name} has changed" for name in found if found[name] != listed.get(name, found[name])),
    ]
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        told = f"{'; '.join(problems[:_SHOWN])}{more}"
        raise EnvironmentFault(f"{folder} is not what was published: {told}", _hint(folder))


def _hint(folder: Path) -> str:
    return f"(cd {folder} && sha256sum -c {FILE}) names them; roll back to another version, or run again"


def _digests(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != FILE.as_posix():
            yield name, _digest(path)


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _line(digest: str, name: str) -> str:
    """Return a line of sha256sum, which escapes names with a backslash or the end of a line in them."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n")
    mark = "\\" if escaped != name else ""
    return f"{mark}{digest}  {escaped}\n"


def _parsed(line: str) -> tuple[str, str]:
    """Return name and digest. Raises ValueError."""
    digest, name = line.removeprefix("\\").split("  ", 1)
    if line.startswith("\\"):
        name = "\\".join(part.replace("\\n", "\n") for part in name.split("\\\\"))
    return name, digest
