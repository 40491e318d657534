"""`assets.extra` of a SavedModel: a user's files, and a manifest that says where the version comes from.

No TensorFlow reads them, but they travel with the version, and servers take warmup requests from there.
"""

from __future__ import annotations

import json
import math
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from configs.schema.export import ANSWERS, MANIFEST, SERVING
from configs.schema.pipeline import ExportConfig
from tasks.core import op_libraries
from tasks.core.artifacts import Check, Checkpoint, Examples, Run
from tasks.core.errors import ModelError
from tasks.exports import source_digests

_PACKAGES = ("slipway", "tensorflow", "tensorflow-estimator", "numpy", "protobuf", "prefect")
_PACKAGES_THAT_TRAIN = ("slipway", "tensorflow", "tensorflow-estimator")
_GIT_TIMEOUT_SECONDS = 10
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def folder_in(saved_model: Path) -> Path:
    """Return the folder of extra assets of a SavedModel."""
    return saved_model / "assets.extra"


def private_folder_in(saved_model: Path) -> Path:
    """Return the folder in it that only its owner may read: answers, configuration, statistics."""
    return folder_in(saved_model) / ANSWERS


def read_manifest(saved_model: Path) -> dict[str, Any]:
    """Return the manifest of a version, its metrics as numbers; {} where it was put there by hand."""
    try:
        told = dict(json.loads((folder_in(saved_model) / MANIFEST).read_text()))
    except (OSError, ValueError, TypeError):
        return {}
    metrics = told.get("metrics")
    return {**told, "metrics": _numbers(metrics)} if isinstance(metrics, dict) else told


def _numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics; one that is no JSON number was written as a string, and is a number again."""
    return {
        name: _NOT_FINITE.get(value, value) if isinstance(value, str) else value
        for name, value in metrics.items()
    }


def inputs(run: Run) -> dict[str, Any]:
    """Return what a version is made of besides its examples: digests of code and files, and packages.

    Digests are SHA-256: of the Python files below the YAML's folder and of packages that it names, and of
    the files that it names.
    """
    config = run.folder / "config.yaml"
    return {
        "code_sha256": source_digests.of_code(run.source, config),
        "files_sha256": source_digests.of_files(run.source, config),
        "packages": {name: _version(name) for name in _PACKAGES} | {"python": platform.python_version()},
    }


def same_inputs(run: Run, manifest: Mapping[str, Any]) -> bool:
    """Return whether a version would be made of the same code and files, by the same TensorFlow."""
    now, packages = inputs(run), manifest.get("packages")
    return all(manifest.get(key) == now[key] for key in ("code_sha256", "files_sha256")) and (
        isinstance(packages, dict)
        and all(packages.get(name) == now["packages"][name] for name in _PACKAGES_THAT_TRAIN)
    )


def require(export: ExportConfig, source: Path) -> None:
    """Raise ModelError unless every file of `export.assets_extra` is there."""
    for destination, file in export.assets_extra.items():
        if not (source / file).is_file():
            message = f"export.assets_extra: {destination}: no such file: {source / file}"
            raise ModelError(message, "the path is relative to the YAML")


def write(saved_model: Path, export: ExportConfig, run: Run, manifest: Mapping[str, Any]) -> None:
    """Copy the user's files; write `manifest.json` and, if there is something to state, `serving.json`."""
    folder = folder_in(saved_model)
    for destination, file in export.assets_extra.items():
        target = folder / destination
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run.source / file, target)
    folder.mkdir(exist_ok=True)
    stated: dict[str, Any] = {}
    if export.row_independent is not None:
        stated["row_independent"] = export.row_independent
    if libraries := op_libraries.found(run.ops, run.source):
        stated["ops"] = {each.path.name: each.sha256 for each in libraries}
    if stated:
        (folder / SERVING).write_text(json.dumps(stated, sort_keys=True) + "\n")
    _write(saved_model, manifest)


def manifest(
    run: Run, examples: Examples, checkpoint: Checkpoint, seed: int, metrics: Mapping[str, float]
) -> dict[str, Any]:
    """Return what `manifest.json` says: what this version was made of, with which code, when (UTC).

    Digests are SHA-256: of the run's resolved configuration, of the examples in any order, and those of
    `inputs`.
    """
    return {
        "run_id": run.run_id,
        "pipeline": run.pipeline,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config_sha256": source_digests.of_file(run.folder / "config.yaml"),
        "data_sha256": examples.digest,
        "examples": examples.total,
        "git_commit": _git(run.source, "rev-parse", "--verify", "HEAD"),
        "git_changes": _changes(run.source),
        **inputs(run),
        "seed": seed,
        "checkpoint_step": checkpoint.global_step,
        "metrics": {name: float(value) for name, value in metrics.items()},
    }


def complete(saved_model: Path, parent_version: int | None, checks: Sequence[Check]) -> None:
    """Add to the manifest what is known just before the version is sealed.

    That is the version that served then, and what every gate saw so far. What comes after (the smoke test,
    the verdict) cannot be in a version that no longer changes: `verdict` says where in $SLIPWAY_HOME it is.
    """
    made_of = read_manifest(saved_model)
    if made_of:
        verdict = f"runs/{made_of.get('pipeline')}/{made_of.get('run_id')}/verdict.json"
        seen = {"parent_version": parent_version, "checks": checks, "verdict": verdict}
        _write(saved_model, {**made_of, **seen})


def _write(saved_model: Path, manifest: Mapping[str, Any]) -> None:
    # "NaN" and "Infinity" as strings, as in verdict.json: bare ones are no JSON.
    plain = json.loads(to_json(manifest, inf_nan_mode="strings"))
    text = json.dumps(plain, indent=2, sort_keys=True, allow_nan=False)
    (folder_in(saved_model) / MANIFEST).write_text(f"{text}\n")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _changes(folder: Path) -> bool | None:
    """Return whether files in the pipeline's folder differ from its commit; None in no repository."""
    told = _git(folder, "status", "--porcelain", "--", ".")
    return None if told is None else bool(told)


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says of the pipeline's folder; None where it is in no repository."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
