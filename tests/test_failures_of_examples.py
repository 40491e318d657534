"""Examples that make training fail are named: NaN, labels, all alike; and ingestion shows progress."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pipelines import run_of, written

from tasks.core.errors import DataError
from tasks.in_tensorflow import ingest, train
from tasks.processes.tensorflow_process import ignore_progress
from tasks.runs import progress_lines


def _failure(folder: Path, rows: list[str], model: dict[str, Any], label: str = "int64") -> DataError:
    """The error of training on a CSV of x and y."""
    folder.mkdir()
    (folder / "some.csv").write_text("\n".join(["x,y", *rows]) + "\n")
    data = {"files": ["*.csv"], "format": "csv", "features": {"x": "float32"}, "label": {"y": label},
            "split": {"sample": 0.2}}  # fmt: skip
    pipeline = written(folder, {"data": data, "model": model, "training": {"max_steps": 9, "batch_size": 64}})
    config, run = pipeline.config, run_of(pipeline, folder)
    with pytest.raises(DataError) as caught:  # noqa: PT012 (either may raise)
        examples = ingest.run(ignore_progress, config.data, run)
        train.run(ignore_progress, config.model, config.training, config.data, examples, run)
    return caught.value


def _rows(**changed: str) -> list[str]:
    rows = [f"{number / 10},{number % 2}" for number in range(200)]
    for line, row in changed.items():
        rows[int(line.removeprefix("line")) - 2] = row
    return rows


@pytest.mark.parametrize("kind", ["LinearRegressor", "DNNRegressor"])
def test_a_nan_is_named_by_feature_and_line(tmp_path: Path, kind: str) -> None:
    """Not "NaN loss during training"."""
    params = {"hidden_units": [4]} if kind.startswith("DNN") else {}
    rows = _rows(line17="+nan,1", line90="inf,0")
    error = _failure(tmp_path / "small", rows, {"estimator": kind, "params": params}, "float32")
    assert error.message.startswith("feature 'x' is NaN or infinite in 2 of 200 examples, first in ")
    assert error.message.endswith("some.csv: line 17")
    assert "data.gates" in error.hint


def test_an_infinity_alone_is_named(tmp_path: Path) -> None:
    """Not "Infinity in Histogram for: dnn/hiddenlayer_0/activation"."""
    model = {"estimator": "DNNRegressor", "params": {"hidden_units": [4]}}
    rows = [f"{'inf' if number % 4 else 0.5},{number / 10}" for number in range(200)]
    error = _failure(tmp_path / "small", rows, model, "float32")
    assert error.message.startswith("feature 'x' is NaN or infinite in 150 of 200 examples, first in ")


@pytest.mark.parametrize(
    ("value", "classes", "expected"),
    [(7, 3, "is 7, expected 0 to 2"), (2, 2, "is 2, expected 0 to 1"), (-1, 3, "is -1, expected 0 or more")],
)  # fmt: skip
def test_a_label_out_of_range_is_named_by_value_and_line(
    tmp_path: Path, value: int, classes: int, expected: str
) -> None:
    """And by what the model takes."""
    model = {"estimator": "LinearClassifier", "params": {"n_classes": classes}}
    rows = _rows(**{f"line{line}": f"{line},{value}" for line in range(51, 70)})
    error = _failure(tmp_path / "small", rows, model)
    assert error.message.endswith(f"some.csv: line 51: label 'y' {expected}")
    assert "n_classes" in error.hint


def test_examples_that_are_all_alike(tmp_path: Path) -> None:
    """Said as such, and not as an empty split."""
    error = _failure(tmp_path / "small", ["1.0,1"] * 50, {"estimator": "LinearClassifier"})
    assert error.message.startswith("all 50 examples are alike")


def test_ingestion_shows_count_rate_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a line of text."""
    monkeypatch.setattr(ingest, "SECONDS_BETWEEN_REPORTS", 0.0)
    (tmp_path / "some.csv").write_text("\n".join(["x,y", *_rows()]) + "\n")
    data = {"files": ["*.csv"], "format": "csv", "features": {"x": "float32"}, "label": {"y": "int64"},
            "split": {"sample": 0.2}}  # fmt: skip
    pipeline = written(tmp_path, {"data": data})
    seen: list[Mapping[str, Any]] = []
    ingest.run(seen.append, pipeline.config.data, run_of(pipeline, tmp_path))
    assert re.fullmatch(r"200 examples  [\d,]+ examples/s  0\.0 MB", progress_lines.line(seen[-1]))


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        ({"message": "reading"}, "reading"),
        ({"step": 1200, "max_steps": 5000, "loss": 0.12345, "steps_per_second": 310.4},
         "step 1,200/5,000  loss 0.1235  310 steps/s"),
        ({"examples": 12345, "examples_per_second": 999.6, "bytes": 4_200_000},
         "12,345 examples  1,000 examples/s  4.2 MB"),
    ],
)  # fmt: skip
def test_a_line_of_progress(progress: dict[str, Any], text: str) -> None:
    """Numbers with their units, and no names of keys."""
    assert progress_lines.line(progress) == text
