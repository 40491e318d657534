"""The list of versions that a run published, `<base path>/.published`, for MODEL_SERVER_PUBLISHED_ONLY.

    {"versions": {"7": "<SHA-256 of the version's assets.extra/SHA256SUMS>"}, "sha256": "…"}

A version that is not listed, or not by this digest, was copied there by somebody and is not served. The
list's own checksum covers its other fields.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from model_server.models import checksums

LIST = ".published"


class NoList(Exception):
    """The list is missing or damaged, so that nothing can be concluded from it."""


def only(base_path: Path, found: Mapping[int, list[Path]]) -> tuple[dict[int, list[Path]], dict[Path, str]]:
    """Return the published ones of the versions found, and a complaint for each other. Raises NoList."""
    known = _listed(base_path / LIST)
    published: dict[int, list[Path]] = {}
    complaints = {}
    for number, paths in found.items():
        for path in paths:
            if known.get(str(number)) == _digest(path):
                published.setdefault(number, []).append(path)
            else:
                complaints[path] = (
                    f"{path} is not served: no run published it (it is not in {LIST}, or other files are). "
                    "Remove it and let a run publish that model, or set MODEL_SERVER_PUBLISHED_ONLY=false "
                    "(server.published_only in a pipeline)."
                )
    return published, complaints


def sealed(found: Mapping[int, list[Path]]) -> dict[int, list[Path]]:
    """Return the versions that have a SHA256SUMS, as those of runs have: for a start without the list."""
    complete = {number: [path for path in paths if _digest(path)] for number, paths in found.items()}
    return {number: paths for number, paths in complete.items() if paths}


def _listed(file: Path) -> Mapping[str, str]:
    try:
        fields = json.loads(file.read_bytes())
        given = fields.pop("sha256")
        if given == hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest():
            return dict(fields["versions"])
        problem = "is damaged"
    except FileNotFoundError:
        problem = "is missing"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        problem = "is damaged"
    raise NoList(f"{file} {problem}: until a run or slipway recover restores it, no other version is taken.")


def _digest(directory: Path) -> str:
    try:
        return hashlib.sha256((directory / checksums.LIST).read_bytes()).hexdigest()
    except OSError:
        return ""
