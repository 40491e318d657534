"""What finished stages of a run came to, in `stages/` of its folder: a resumed run takes it from there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from tasks.core import durable_files
from tasks.core.artifacts import Candidate, Checkpoint, Examples, Run
from tasks.state import model_versions

Artifact = TypeVar("Artifact")

_log = logging.getLogger(__name__)


@dataclass
class FinishedStages:
    """Artifacts by stage name, each a JSON file. Stages ask in the order in which they are run."""

    run: Run
    resumed: bool
    """Whether this run goes on with what one before it finished."""
    _recalled: set[str] = field(default_factory=set)

    @property
    def _folder(self) -> Path:
        return self.run.folder / "stages"

    def recall(self, stage: str, returns: type[Artifact]) -> Artifact | None:
        """Return what the stage came to before; None where it is to be run.

        A stage is run again where nothing is kept of it, where files that its artifact names are gone,
        and after any stage that is run again: what is kept of it is about other inputs, and removed.
        """
        artifact = self._read(stage, returns) if self.resumed else None
        if artifact is None or not _is_there(artifact, self.run):
            self.resumed = False
            self._forget_others()
            return None
        self._recalled.add(stage)
        return artifact

    def keep(self, stage: str, artifact: Any) -> None:
        """Write the artifact durably, and sync the files that it names."""
        for path in _paths(artifact):
            durable_files.sync(path)
        durable_files.write(self._file(stage), to_json(artifact, inf_nan_mode="constants"))
        self._recalled.add(stage)

    def _file(self, stage: str) -> Path:
        return self._folder / f"{stage}.json"

    def _read(self, stage: str, returns: type[Artifact]) -> Artifact | None:
        try:
            return TypeAdapter(returns).validate_json(self._file(stage).read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:  # written by another release of Slipway
            _log.warning("%s is not what %s returns; it is run again: %s", self._file(stage), stage, error)
            return None

    def _forget_others(self) -> None:
        for file in self._folder.glob("*.json"):
            if file.stem not in self._recalled:
                file.unlink()


def _is_there(artifact: Any, run: Run) -> bool:
    """Return whether the files that an artifact names are still on disk."""
    if isinstance(artifact, Examples):
        return all(path.is_file() for path in _paths(artifact))
    if isinstance(artifact, Checkpoint):
        return Path(f"{artifact.prefix}.index").is_file()
    if isinstance(artifact, Candidate):
        exported = model_versions.is_saved_model(artifact.path)
        published = model_versions.published_by(run.model_base_path, run.run_id)
        return artifact.offline.is_dir() and (exported or published is not None)
    return True


def _paths(artifact: Any) -> Iterator[Path]:
    """Yield the files and folders that are to be on disk before an artifact that names them is."""
    if isinstance(artifact, Examples):
        for split in (artifact.train, artifact.eval, artifact.sample):
            yield from split.files
    if isinstance(artifact, Checkpoint):
        yield from artifact.prefix.parent.glob(f"{artifact.prefix.name}.*")
    if isinstance(artifact, Candidate):
        for folder in (artifact.path, artifact.offline):
            yield from (*folder.rglob("*"), folder)
