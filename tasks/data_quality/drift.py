"""How far one night's feature lies from another's. Plain Python.

Shares of the values are compared: of each value, where there are few, else of ranges that hold a tenth
each of the night before, and of a single value by itself where it holds that much. Missing is one more.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import Literal

from tasks.data_quality.statistics import MOST_VALUES, FeatureStatistics, Point

RANGES = 10
_LEAST_SHARE = 1e-4
"""What PSI takes in place of 0, of which there is no logarithm."""

Measure = Literal["jensen_shannon", "psi"]
NAMES: dict[Measure, str] = {"jensen_shannon": "Jensen-Shannon divergence", "psi": "PSI"}


def distance(before: FeatureStatistics, tonight: FeatureStatistics, measure: Measure) -> float:
    """Return how far tonight's values lie from those before; 0 where they are alike."""
    return of_shares(*_shares(before, tonight), measure)


def of_shares(before: Sequence[float], tonight: Sequence[float], measure: Measure) -> float:
    """Return the distance of two lists of shares, each of which adds up to 1."""
    pairs = list(zip(before, tonight, strict=True))
    return _jensen_shannon(pairs) if measure == "jensen_shannon" else _psi(pairs)


def _jensen_shannon(pairs: list[tuple[float, float]]) -> float:
    def from_the_middle(share: float, middle: float) -> float:
        return share * math.log2(share / middle) if share else 0.0

    return max(
        0.0, sum(from_the_middle(p, (p + q) / 2) + from_the_middle(q, (p + q) / 2) for p, q in pairs) / 2
    )


def _psi(pairs: list[tuple[float, float]]) -> float:
    floored = [(max(p, _LEAST_SHARE), max(q, _LEAST_SHARE)) for p, q in pairs]
    return sum((q - p) * math.log(q / p) for p, q in floored)


def _shares(before: FeatureStatistics, tonight: FeatureStatistics) -> tuple[list[float], list[float]]:
    if _is_counted(before) and _is_counted(tonight):
        values = sorted({*before.commonest, *tonight.commonest})
        return _of_values(before, values), _of_values(tonight, values)
    cuts = _cuts(before.points or tonight.points)
    return _of_ranges(before, cuts), _of_ranges(tonight, cuts)


def _is_counted(feature: FeatureStatistics) -> bool:
    few = feature.distinct is not None and feature.distinct <= MOST_VALUES
    return feature.dtype == "string" or (feature.dtype == "int64" and few)


def _of_values(feature: FeatureStatistics, values: Sequence[str]) -> list[float]:
    """Return the shares of missing, of each value, and of all others."""
    missing = feature.missing_share
    counts = [feature.commonest.get(value, 0) for value in values]
    present = [(1 - missing) * count / feature.values if feature.values else 0.0 for count in counts]
    return [missing, *present, max(0.0, 1 - missing - sum(present))]


def _cuts(points: Sequence[Point]) -> list[tuple[float, bool]]:
    """Return where ranges end: a value, and whether it belongs to the range that ends there."""
    cuts: set[tuple[float, bool]] = set()
    for part in range(1, RANGES):
        found = next((point for point in points if point.up_to >= part / RANGES), None)
        if found is not None:
            cuts.add((found.value, True))
            if found.up_to - found.below >= 1 / RANGES:
                cuts.add((found.value, False))
    return sorted(cuts)


def _of_ranges(feature: FeatureStatistics, cuts: Sequence[tuple[float, bool]]) -> list[float]:
    """Return the shares of missing, and of each range between the cuts."""
    missing = feature.missing_share
    if not feature.points:
        return [missing, 1 - missing, *(0.0 for _ in cuts)]
    ends = [0.0, *(_up_to(feature.points, value, including) for value, including in cuts), 1.0]
    return [missing, *((1 - missing) * max(0.0, b - a) for a, b in itertools.pairwise(ends))]


def _up_to(points: Sequence[Point], value: float, including: bool) -> float:
    """Return the share of values up to `value`, itself included or not; between points it rises evenly."""
    after = bisect.bisect_right(points, value, key=lambda point: point.value)
    if after == 0:
        return 0.0
    point = points[after - 1]
    if point.value == value:
        return point.up_to if including else point.below
    if after == len(points):
        return 1.0
    following = points[after]
    part = (value - point.value) / (following.value - point.value)
    return point.up_to + part * (following.below - point.up_to)
