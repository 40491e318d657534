"""What two versions differ in: what they were made of, their metrics, and their answers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from configs.loading.errors import ConfigError
from configs.loading.pipelines import Pipeline
from tasks.answers import kept_answers
from tasks.core.artifacts import Difference, OutputDifference, Run, VersionDifferences
from tasks.exports import extra_assets
from tasks.processes import tensorflow_process
from tasks.runs import run_folders
from tasks.state import model_versions

_NO_FACTS = {"metrics", "checks", "verdict", "pipeline", "warmup"}


def differences(pipeline: Pipeline, first: str, second: str, samples: int) -> VersionDifferences:
    """Compare two versions of the pipeline, each a number or a version's folder.

    Raises ConfigError naming the versions that there are where one is not there. Answers are compared on
    examples that the second keeps; where either keeps none, `note` says so.
    """
    one, other = _folder(pipeline, first), _folder(pipeline, second)
    run = run_folders.describe(pipeline, "diff")
    outputs, note = _outputs(one, other, samples, run)
    made, made_other = extra_assets.read_manifest(one), extra_assets.read_manifest(other)
    return VersionDifferences(
        str(one), str(other),
        origin=tuple(_between(_without(made, _NO_FACTS), _without(made_other, _NO_FACTS))),
        config=tuple(_between(_config(one), _config(other))),
        metrics=tuple(_side_by_side(made.get("metrics") or {}, made_other.get("metrics") or {})),
        outputs=outputs,
        note=note,
    )  # fmt: skip


def _folder(pipeline: Pipeline, named: str) -> Path:
    there = model_versions.versions(pipeline.model_base_path)
    if named.isdigit() and int(named) in there:
        return there[int(named)]
    folder = Path(os.path.abspath(Path(named).expanduser()))
    if not named.isdigit() and model_versions.is_saved_model(folder):
        return folder
    base = pipeline.model_base_path
    raise ConfigError(
        f"{named!r} is neither a version in {base} nor the folder of one",
        f"there are: {', '.join(map(str, there)) or 'none'}; withdrawn ones are folders there",
    )


def _config(version: Path) -> Mapping[str, Any]:
    try:
        text = (extra_assets.private_folder_in(version) / "config.yaml").read_text()
    except OSError:
        return {}
    read = yaml.safe_load(text)
    return read if isinstance(read, dict) else {}


def _without(mapping: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}


def _between(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Difference]:
    """Yield what differs, by key path; what one of them lacks is None there."""
    one, other = dict(_flat(first)), dict(_flat(second))
    for key in sorted(one.keys() | other.keys()):
        if one.get(key) != other.get(key):
            yield Difference(key, one.get(key), other.get(key))


def _flat(mapping: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _side_by_side(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Difference]:
    """Yield every metric, also those that are equal."""
    for name in sorted(first.keys() | second.keys()):
        yield Difference(name, first.get(name), second.get(name))


def _outputs(first: Path, second: Path, samples: int, run: Run) -> tuple[tuple[OutputDifference, ...], str]:
    one, other = kept_answers.of_version(first), kept_answers.of_version(second)
    if one is None or other is None:
        lacking = first if one is None else second
        return (), f"{lacking} does not say how it is asked: it was published by hand, or by another release"
    with tempfile.TemporaryDirectory(prefix="slipway-diff-") as scratch:
        found = tensorflow_process.run(
            "diff", tuple[OutputDifference, ...], log=Path(scratch) / "diff.log",
            ops_of=run,
            arguments={"first": one, "second": other, "samples": samples},
        )  # fmt: skip
    return found, "" if found else "they have no signature in common"
