"""How far the answers of two versions lie apart, example by example. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.answers import comparison
from tasks.answers.comparison import Limit
from tasks.core.artifacts import AnswerDifference, OutputDifference

MOST_SHOWN = 5
"""Examples of an output that are shown, those that differ most first."""


def of_signature(
    signature: str,
    first: Mapping[str, NDArray[Any]],
    second: Mapping[str, NDArray[Any]],
    limits: Mapping[str, Limit],
) -> Iterator[OutputDifference]:
    """Compare the outputs that both have, by alias; the first dimension is the example.

    Answers within `limits`, by alias, are equal.
    """
    for alias in sorted(first.keys() & second.keys()):
        limit = limits.get(alias, comparison.EXACT)
        yield _of_output(signature, alias, np.asarray(first[alias]), np.asarray(second[alias]), limit)


def _of_output(
    signature: str, alias: str, first: NDArray[Any], second: NDArray[Any], limit: Limit
) -> OutputDifference:
    if first.shape != second.shape or first.dtype.kind != second.dtype.kind or not first.ndim:
        forms = f"{first.dtype.name}{list(first.shape)} and {second.dtype.name}{list(second.shape)}"
        return OutputDifference(
            signature, alias, 0, 0, None, (), "" if not first.ndim else f"differ: {forms}"
        )
    rows = (first.reshape(len(first), -1), second.reshape(len(second), -1))
    differs = comparison.beyond(*rows, limit)
    numbers = first.dtype.kind in "fiu"
    distances = _distances(*rows) if numbers else differs.sum(axis=1).astype(np.float64)
    furthest = [int(row) for row in np.argsort(-distances, kind="stable") if differs[row].any()][:MOST_SHOWN]
    shown = tuple(AnswerDifference(row, _shown(first[row]), _shown(second[row])) for row in furthest)
    largest = float(distances.max(initial=0.0)) if numbers else None
    return OutputDifference(signature, alias, len(first), int(differs.any(axis=1).sum()), largest, shown)


def _distances(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Return the largest absolute difference in each row; infinite where one is not a number."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(first.astype(np.float64) - second.astype(np.float64))
    apart[first == second] = 0.0  # infinities, too
    both = _nan(first) & _nan(second)
    return np.where(both, 0.0, np.nan_to_num(apart, nan=np.inf)).max(axis=1, initial=0.0)  # type: ignore[no-any-return]


def _nan(values: NDArray[Any]) -> NDArray[np.bool_]:
    return np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)


def _shown(values: NDArray[Any]) -> str:
    flat = np.ravel(values)
    text = ", ".join(_value(value) for value in flat[:8])
    return f"{text}, …" if flat.size > 8 else text  # noqa: PLR2004 (what fits on a line)


def _value(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return f"{value:.6g}" if isinstance(value, (float, np.floating)) else str(value)
