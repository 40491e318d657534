"""Which example made the model fail, by tonight's statistics: a NaN in a feature, a label out of range."""

from __future__ import annotations

import re
from pathlib import Path

from configs.schema.pipeline import DataConfig
from tasks.core.errors import DataError
from tasks.data_quality import statistics

_NO_NUMBER = re.compile(r"\b(nan|inf|infinity)\b", re.IGNORECASE)
_MOST_CLASSES = re.compile(r"Labels must be <= n_classes - 1.*\[y [^]]*\] \[(\d+)\]", re.DOTALL)


def of_failure(said: str, run_folder: Path, data: DataConfig) -> DataError | None:
    """Return the error that names feature, value and example; None if the examples do not explain it.

    `said` is TensorFlow's message.
    """
    found = statistics.read(statistics.in_examples(run_folder))
    if found is None:
        return None
    if _NO_NUMBER.search(said):
        return _not_finite(found)
    if "Labels must be" in said:
        most = _MOST_CLASSES.search(said)
        return _label(found, data, int(most[1]) if most else None)
    return None


def _not_finite(found: statistics.Statistics) -> DataError | None:
    for name, feature in found.features.items():
        if feature.not_finite:
            share = f"{feature.not_finite:,} of {found.examples:,} examples"
            return DataError(
                f"feature {name!r} is NaN or infinite in {share}, first in {feature.first_not_finite}",
                "write a number, or leave the feature out and give it a default in data.features; "
                f"data.gates.limits.{name}.max_missing rejects such a night before training",
            )
    return None


def _label(found: statistics.Statistics, data: DataConfig, most: int | None) -> DataError | None:
    for name in data.label:
        label = found.features.get(name)
        if label is None or label.least is None or label.largest is None:
            continue
        expected = f"0 to {most}" if most is not None else "0 or more"
        hint = "model.params.n_classes is the number of classes: labels count from 0"
        if most is not None and label.largest > most:
            return DataError(
                f"{label.largest_in}: label {name!r} is {label.largest:g}, expected {expected}", hint
            )
        if label.least < 0:
            return DataError(
                f"{label.least_in}: label {name!r} is {label.least:g}, expected {expected}", hint
            )
    return None
