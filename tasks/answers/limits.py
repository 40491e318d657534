"""What a version's answers are held to: a limit for each output, and the conditions of its predictions.

Derived once, at export, from how far `estimator.predict` itself moves between batch sizes and processes; kept
beside the expected answers, so that a rollback or a recovery proves a version by the tolerance that it was
deployed with. NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from configs.schema.answers import Near, Tolerance, Ulps
from tasks.answers import comparison
from tasks.answers.comparison import Limit

_FILE = "limits.json"
_EXPORTED_FILE = "exported.json"
_SAFETY_FACTOR = 8
"""How much farther than between batch sizes here an answer may lie on another machine or device."""
_CEILING = 1e-3
_CEILING_FLOORS = 4
"""The ceiling in floors, for float16 and bfloat16, whose floor is near or above `_CEILING`."""

BySize = Mapping[int, NDArray[Any]]
"""Batch size to the answers about all samples, predicted in batches of that size."""


@dataclass(frozen=True)
class Limits:
    """What the answers of a version are held to."""

    outputs: dict[str, dict[str, Limit]] = field(default_factory=dict)
    """By signature and output alias."""
    conditions: dict[str, str] = field(default_factory=dict)
    """Under which `estimator.predict` answered (`numerics.conditions()`)."""

    def of(self, signature: str) -> dict[str, Limit]:
        """Return the limits of a signature's outputs."""
        return self.outputs.get(signature, {})


def derive(
    tolerance: Tolerance, predicted: BySize, again: BySize | None, *, computed_in_double: bool = False
) -> Limit:
    """Return the limit of an output from what was predicted in each batch size.

    `again` is what another process or session predicted under the same conditions, None if none did. A
    float64 output is as exact as float32 unless the model is `computed_in_double`.
    """
    whole = predicted[max(predicted)]
    repeats = (
        again is not None
        and predicted.keys() == again.keys()
        and all(comparison.identical(predicted[size], again[size]) for size in predicted)
    )
    if not comparison.is_float(whole.dtype):
        return Limit(repeats=repeats and tolerance == "auto")
    scale = comparison.magnitude(whole)
    if isinstance(tolerance, Ulps):
        return Limit(ulps=tolerance.ulps, scale=scale)
    if isinstance(tolerance, Near):
        return Limit(
            tolerance.rtol, scale * tolerance.rtol if tolerance.atol is None else tolerance.atol, scale=scale
        )
    if tolerance == "exact":
        return Limit(scale=scale)
    apart = comparison.spread(predicted)
    if again is not None:
        apart = max(apart, *(comparison.spread({0: predicted[size], 1: again[size]}) for size in again))
    name = whole.dtype.name
    floor = comparison.floor("float32" if name == "float64" and not computed_in_double else name)
    rtol = max(floor, _SAFETY_FACTOR * apart)
    too_far = apart if rtol > max(_CEILING, _CEILING_FLOORS * floor) else None
    rtol = min(rtol, max(_CEILING, _CEILING_FLOORS * floor))
    return Limit(rtol, rtol * scale, scale=scale, repeats=repeats, too_far=too_far)


def complete(known: Limits, signature: str, expected: Mapping[str, NDArray[Any]]) -> Limits:
    """Return limits that hold the signature: for one without any, `auto`'s for the expected answers alone."""
    if signature in known.outputs:
        return known
    assumed = {alias: derive("auto", {1: array}, None) for alias, array in expected.items()}
    return replace(known, outputs={**known.outputs, signature: assumed})


def write(folder: Path, limits: Limits) -> None:
    """Write the limits beside the expected answers."""
    (folder / _FILE).write_bytes(to_json(limits))


def read(folder: Path) -> Limits:
    """Return the limits beside the expected answers; empty if there are none that can be read."""
    try:
        return TypeAdapter(Limits).validate_json((folder / _FILE).read_bytes())
    except (OSError, ValidationError):
        return Limits()  # published by hand, or by another release


def write_exported(folder: Path, conditions: dict[str, str]) -> None:
    """Record the conditions under which the export was predicted."""
    (folder / _EXPORTED_FILE).write_bytes(to_json(conditions))


def exported_under(folder: Path) -> dict[str, str]:
    """Return those conditions; empty if they are not known."""
    try:
        return TypeAdapter(dict[str, str]).validate_json((folder / _EXPORTED_FILE).read_bytes())
    except (OSError, ValidationError):
        return {}
