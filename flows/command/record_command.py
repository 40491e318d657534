"""`slipway record`: golden requests, which every candidate answers before it is published."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from configs.loading.errors import ConfigError
from configs.loading.pipelines import Pipeline
from tasks.answers import kept_answers
from tasks.core.artifacts import Recording
from tasks.processes import tensorflow_process
from tasks.state import model_versions

console = Console(highlight=False)


def run(loaded: Pipeline, requests: int, logs: Sequence[Path]) -> int:
    """Record them beside the pipeline. Raises ConfigError where there are some already, or no version yet."""
    file = loaded.config.golden.path(loaded.folder)
    if file.exists():
        raise ConfigError(f"{file} is there already: golden requests are recorded once", "remove it first")
    if not file.parent.is_dir():
        raise ConfigError(f"golden.file: there is no folder {file.parent}", "make it, or name another")
    versions = model_versions.versions(loaded.model_base_path)
    kept = next(filter(None, map(kept_answers.of_version, reversed(versions.values()))), None)
    if kept is None:
        name = loaded.config.name
        raise ConfigError(
            f"no version of {name} is there whose signatures are known", "slipway run makes one"
        )
    with tempfile.TemporaryDirectory(prefix="slipway-record-") as folder:
        done = tensorflow_process.run(
            "record", Recording, log=Path(folder) / "record.log",
            arguments={
                "file": file, "model_name": loaded.config.name, "requests": requests,
                "logs": [os.path.abspath(log.expanduser()) for log in logs],
                "candidate": kept.candidate, "data": loaded.config.data, "golden": loaded.config.golden,
            },
        )  # fmt: skip
    console.print(done.summary(), markup=False, soft_wrap=True)
    return 0
