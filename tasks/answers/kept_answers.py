"""What a version should answer, kept in it: `assets.extra/answers/` travels with the version.

The run's folder may be removed, or the version copied to another machine: what `estimator.predict` said of
the sample examples is still beside the graph, so that a rollback can compare every number again. Servers do
not read it, and unlike the rest of a version, nobody else may: it holds examples.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from configs.schema.export import ANSWERS
from configs.schema.pipeline import DataConfig
from tasks.core.artifacts import Candidate

FOLDER = Path("assets.extra") / ANSWERS
_CANDIDATE = "candidate.json"
_OWNER_ONLY = 0o700


@dataclass(frozen=True)
class Kept:
    """What is needed to ask a version, and to know the answers."""

    candidate: Candidate
    data: DataConfig
    """The slice that the version was trained with: the YAML may name other features by now."""


def keep(candidate: Candidate, data: DataConfig, also: Iterable[Path] = ()) -> None:
    """Copy the candidate's offline answers, and what asks for them, into its SavedModel.

    `also` are files that are for the owner's eyes too; those that there are not are left out.
    """
    folder = candidate.path / FOLDER
    if not candidate.offline.is_dir():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=_OWNER_ONLY)
    for file in (*candidate.offline.iterdir(), *(file for file in also if file.is_file())):
        shutil.copyfile(file, folder / file.name)
    (folder / _CANDIDATE).write_bytes(to_json({"candidate": candidate, "data": data}, by_alias=True))


def of_version(version: Path) -> Kept | None:
    """Return what the version in this folder should answer; None where it does not say."""
    folder = version / FOLDER
    try:
        kept = TypeAdapter(Kept).validate_json((folder / _CANDIDATE).read_bytes())
    except (OSError, ValidationError):
        return None  # published by hand, or by another release
    return Kept(replace(kept.candidate, path=version, offline=folder), kept.data)
