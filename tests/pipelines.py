"""Pipelines for tests: folders with a YAML, runs of them, and one digits model that many tests share."""

from __future__ import annotations

import atexit
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from made_once import made_once

from configs.loading.pipelines import Pipeline, load_pipeline
from configs.schema.pipeline import PipelineConfig
from tasks.core.artifacts import Candidate, Checkpoint, Examples, Run
from tasks.processes import tensorflow_process

DIGITS = Path(__file__).resolve().parents[1] / "configs" / "digits"


def run_of(pipeline: Pipeline, folder: Path, run_id: str = "r1") -> Run:
    """A run of `pipeline` that keeps all it writes in `folder`."""
    return Run(pipeline.config.name, run_id, folder / run_id, pipeline.folder, folder / "models")


def written(folder: Path, config: Mapping[str, Any]) -> Pipeline:
    """A pipeline whose YAML is in `folder`; what `config` leaves out is that of two numbers and a class."""
    folder.mkdir(parents=True, exist_ok=True)
    defaults = {
        "name": "small",
        "data": {"files": ["*.tfrecord"], "features": {"x": "float32[2]"}, "label": {"y": "int64"}},
        "model": {"estimator": "LinearClassifier"},
        "training": {"max_steps": 2, "batch_size": 8},
    }
    (folder / "pipeline.yaml").write_text(yaml.safe_dump({**defaults, **config}, sort_keys=False))
    return load_pipeline(folder)


@dataclass(frozen=True)
class Trained:
    """The digits, ingested and trained for 300 steps in child processes, as a flow does it."""

    config: PipelineConfig
    run: Run
    examples: Examples
    checkpoint: Checkpoint

    @property
    def model(self) -> dict[str, Any]:
        """What the programs after `train` have in common."""
        config = self.config
        return {"model": config.model, "training": config.training, "data": config.data,
                "examples": self.examples, "run": self.run}  # fmt: skip


@functools.cache
def trained_digits() -> Trained:
    """Train once for all tests of the run, of every worker."""
    return made_once("trained_digits", _train)


def _train(folder: Path) -> Trained:
    atexit.register(tensorflow_process.close)
    pipeline = load_pipeline(DIGITS, {"training.max_steps": 300, "export.receivers": ["parsing", "raw"]})
    config, run = pipeline.config, run_of(pipeline, folder)
    examples = tensorflow_process.run(
        "ingest", Examples, log=run.log("ingest"), arguments={"data": config.data, "run": run}
    )
    checkpoint = tensorflow_process.run(
        "train", Checkpoint, log=run.log("train"),
        arguments={"model": config.model, "training": config.training, "data": config.data,
                   "examples": examples, "run": run},
    )  # fmt: skip
    return Trained(config, run, examples, checkpoint)


@functools.cache
def exported_digits() -> Candidate:
    """Export that model once for all tests of the run, with both receivers."""
    return made_once("exported_digits", lambda _: _export(trained_digits()))


def _export(digits: Trained) -> Candidate:
    return tensorflow_process.run(
        "export", Candidate, log=digits.run.log("export"),
        arguments={**digits.model, "export": digits.config.export, "checkpoint": digits.checkpoint,
                   "answers": digits.config.answers},
    )  # fmt: skip
