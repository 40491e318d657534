"""`assets.extra` of a SavedModel: a user's files, and a manifest that says where the version comes from.

No TensorFlow reads them, but they travel with the version, and servers take warmup requests from there.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from configs.export import MANIFEST
from configs.schema import ExportConfig
from tasks.artifacts import Checkpoint, Examples, Run
from tasks.errors import ModelError

_PACKAGES = ("slipway", "tensorflow", "tensorflow-estimator", "numpy")
_GIT_TIMEOUT_SECONDS = 10


def folder_in(saved_model: Path) -> Path:
    """Return the folder of extra assets of a SavedModel."""
    return saved_model / "assets.extra"


def require(export: ExportConfig, source: Path) -> None:
    """Raise ModelError unless every file of `export.assets_extra` is there."""
    for destination, file in export.assets_extra.items():
        if not (source / file).is_file():
            message = f"export.assets_extra: {destination}: no such file: {source / file}"
            raise ModelError(message, "the path is relative to the YAML")


def write(saved_model: Path, export: ExportConfig, source: Path, manifest: Mapping[str, Any]) -> None:
    """Copy the user's files and write `manifest.json`."""
    folder = folder_in(saved_model)
    for destination, file in export.assets_extra.items():
        target = folder / destination
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, target)
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def manifest(
    run: Run, examples: Examples, checkpoint: Checkpoint, seed: int, metrics: Mapping[str, float]
) -> dict[str, Any]:
    """Return what `manifest.json` says: what this version was made of, with which code, when (UTC).

    Digests are SHA-256: of the run's resolved configuration, and of the examples in any order.
    """
    return {
        "run_id": run.run_id,
        "pipeline": run.pipeline,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config_sha256": _digest(run.folder / "config.yaml"),
        "data_sha256": examples.digest,
        "examples": examples.total,
        "git_commit": _git_commit(run.source),
        "packages": {name: _version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        "seed": seed,
        "checkpoint_step": checkpoint.global_step,
        "metrics": {name: float(value) for name, value in metrics.items()},
    }


def _digest(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit(folder: Path) -> str | None:
    """Return the commit that the pipeline's folder is checked out at; None where it is in no repository."""
    command = ["git", "-C", str(folder), "rev-parse", "--verify", "HEAD"]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
