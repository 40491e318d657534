"""Whether a model's answers equal the expected ones: the one place that decides. NumPy only.

Floats are compared at the scale of their output: a sum that happens to be near zero has few digits left, so
that its relative error, or its distance in ULPs, says nothing. ULPs count representable floats, as in Bruce
Dawson, "Comparing Floating Point Numbers, 2012 Edition": bits of a float, read as an integer with the sign
folded, are in the order of the floats, so their difference is the number of steps between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
"""Output alias to array."""

_EPSILONS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
_FLOOR_EPSILONS = {"float16": 4, "bfloat16": 4}
_MOST_FLOOR_EPSILONS = 64
# Narrow floats are rounded once, when a wider sum is stored; float32 collects an error with each addition.
_SMALLEST_NORMAL = {"bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}


@dataclass(frozen=True)
class Limit:
    """How far the floats of one output may lie from the expected ones. Everything else must be equal."""

    rtol: float = 0.0
    atol: float = 0.0
    """In the output's own unit."""
    ulps: int | None = None
    """Units in the last place, instead of `rtol` and `atol`."""
    scale: float = 0.0
    """Largest magnitude that is expected of the output over the samples; 0 if unknown."""
    repeats: bool = False
    """Whether the model repeats this output bit for bit under the same conditions."""
    too_far: float | None = None
    """The spread, as a fraction of the scale, of a model whose answers are not reproducible."""

    @property
    def is_exact(self) -> bool:
        """Whether only equal numbers pass."""
        return not (self.rtol or self.atol or self.ulps)

    def __str__(self) -> str:
        """Return the limit as a person reads it; floats as a fraction of the output's scale."""
        if self.is_exact:
            return "equal"
        if self.ulps is not None:
            return f"{self.ulps:,} ULPs"
        return f"{max(self.rtol, self.atol / self.scale if self.scale else 0.0):.2g} of scale"


EXACT = Limit()


def floor(dtype: str) -> float:
    """Return the smallest rtol that `auto` allows a float dtype: what adding in another order may change."""
    return _FLOOR_EPSILONS.get(dtype, _MOST_FLOOR_EPSILONS) * _EPSILONS.get(dtype, 0.0)


@dataclass(frozen=True)
class Comparison:
    """How far answers lie from the expected ones. Comparisons add up with `+`."""

    numbers: int = 0
    """Number of values compared."""
    same: int = 0
    """Number of them that are the same bits."""
    largest: float = 0.0
    """Largest difference of a float, as a fraction of its output's scale."""
    times: float = 0.0
    """That difference as a multiple of its limit; infinite beside a limit of 0."""
    broken: bool = False
    """Whether an answer is missing, not finite, or of another dtype or shape: more than different numbers."""
    ties: int = 0
    """Number of class ids and the like that differ because their scores tie within the limit."""
    problem: str = ""
    """The first value beyond the limit, or what else is wrong; empty if nothing is."""
    worst: str = ""
    """Where the largest difference is, though within the limit; empty if there is none."""

    def __add__(self, other: Comparison) -> Comparison:
        """Return both as one: the first problem, the largest difference."""
        furthest = max(self, other, key=lambda each: (each.times, each.largest))
        return Comparison(
            self.numbers + other.numbers, self.same + other.same, furthest.largest, furthest.times,
            self.broken or other.broken, self.ties + other.ties, self.problem or other.problem,
            furthest.worst,
        )  # fmt: skip

    @property
    def equal(self) -> bool:
        """Whether all values are as expected, within the limits."""
        return not self.problem

    @property
    def observed(self) -> str:
        """Return what was found, in a short line; a problem in full."""
        if self.problem:
            return self.problem
        if self.same == self.numbers:
            return f"{self.numbers:,} numbers bit-equal"
        share = math.floor(1000 * self.same / self.numbers) / 10
        ties = f", {self.ties} ties" if self.ties else ""
        return f"within {self.largest:.2g} of scale, {share:g}% bit-equal{ties}"


def failed(problem: str) -> Comparison:
    """Return the comparison of an answer that did not come, or cannot be compared."""
    return Comparison(times=math.inf, broken=True, problem=problem)


def compare(
    expected: Arrays, observed: Arrays, limits: Mapping[str, Limit], *, bits: bool, place: str = "",
    first: int = 0,
) -> Comparison:  # fmt: skip
    """Compare the outputs of one request with the expected ones, by alias; dtypes and shapes must be equal.

    With `bits`, an output that repeats itself has to be the same, bit for bit: the conditions are the same.
    The exception is underflow, such as the softmax of a score far below the others: threads differ in
    whether they flush subnormal intermediate results to zero.
    `place` and `first`, the number of the request's first example, go into the description of a problem.
    NaN equals NaN, and -0.0 equals 0.0; NaN or infinity that is not expected, or strings (dtype S, U or
    object) that differ, are beyond any limit. NULs at the end of a string do not count: NumPy does not store
    them. A class id or a class differs from the expected one only if the scores of both tie within the limit.
    """
    total = Comparison()
    for alias, expected_array in expected.items():
        where = f"{place}output {alias!r}"
        if alias not in observed:
            total += failed(f"{where} is missing from the answer")
            continue
        limit = limits.get(alias, EXACT)
        held_to = replace(EXACT, scale=limit.scale) if bits and limit.repeats else limit
        wanted, found = _plain(expected_array), _plain(observed[alias])
        if problem := _unlike(wanted, found):
            total += failed(f"{where}: {problem}")
            continue
        differs = ~_same(wanted, found)
        if bits and limit.repeats and (underflown := differs & _underflown(wanted, found, limit.scale)).any():
            apart = float(np.abs(wanted.astype(np.float64) - found.astype(np.float64))[underflown].max())
            total += Comparison(same=-int(underflown.sum()), largest=apart / limit.scale)
            found, differs = np.where(underflown, wanted, found), differs & ~underflown
        tied = np.zeros_like(differs)
        if differs.any() and not (_is_float(wanted) or (bits and limit.repeats)) and wanted.ndim:
            tied = differs & _ties(wanted, found, expected, limits)
        total += _measured(wanted, found, held_to, differs, tied, where, first)
    return total


def beyond(expected: NDArray[Any], observed: NDArray[Any], limit: Limit) -> NDArray[np.bool_]:
    """Return which values differ from the expected ones, in an array of the same shape, beyond the limit."""
    expected, observed = _plain(expected), _plain(observed)
    differs = ~_same(expected, observed)
    return (
        differs & (_distances(expected, observed, limit, differs)[1] > 1) if _is_float(expected) else differs
    )


def not_finite(observed: Arrays, place: str = "", first: int = 0) -> Comparison:
    """Return a problem that names the first NaN or infinity, if there is one."""
    for alias, array in observed.items():
        plain = _plain(array)
        if _is_float(plain) and not (finite := np.isfinite(plain.astype(np.float64))).all():
            index = tuple(int(step) for step in np.argwhere(~finite)[0])
            where = f"{place}output {alias!r}{_example(index, first)}"
            return failed(f"{where}: expected a finite number, found {plain[index]}")
    return Comparison()


def spread(arrays: Mapping[int, NDArray[Any]]) -> float:
    """Return how far arrays of the same numbers lie apart, as a fraction of their largest magnitude."""
    widest, *others = (_plain(array).astype(np.float64) for array in arrays.values())
    scale = magnitude(widest)
    apart = 0.0
    for other in others:
        if other.shape != widest.shape:
            return math.inf
        with np.errstate(invalid="ignore"):
            far = np.where(_same(widest, other), 0.0, np.abs(widest - other))
        largest = float(np.nan_to_num(far, nan=np.inf).max(initial=0.0))
        apart = max(apart, largest / scale if scale else (math.inf if largest else 0.0))
    return apart


def magnitude(array: NDArray[Any]) -> float:
    """Return the largest finite magnitude in an array of floats; 0.0 if there is none."""
    wide = np.abs(_plain(array).astype(np.float64))
    return float(wide[np.isfinite(wide)].max(initial=0.0))


def is_float(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype is one of floats, bfloat16 included."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def identical(first: NDArray[Any], second: NDArray[Any]) -> bool:
    """Return whether two arrays have the same dtype, shape and values."""
    first, second = _plain(first), _plain(second)
    return not _unlike(first, second) and bool(_same(first, second).all())


def _is_float(array: NDArray[Any]) -> bool:
    return is_float(array.dtype)


def _measured(
    wanted: NDArray[Any], found: NDArray[Any], limit: Limit, differs: NDArray[np.bool_],
    tied: NDArray[np.bool_], where: str, first: int,
) -> Comparison:  # fmt: skip
    """Return the comparison of one output."""
    same = int(wanted.size - differs.sum())
    if not differs.any():
        return Comparison(wanted.size, same)
    if not _is_float(wanted):
        wrong = differs & ~tied
        if not wrong.any():
            return Comparison(wanted.size, same, ties=int(tied.sum()))
        index = _first(wrong)
        values = f"expected {_value(wanted[index])}, found {_value(found[index])}"
        problem = f"{where}{_example(index, first)}: {values}"
        return Comparison(wanted.size, same, times=math.inf, problem=problem)
    apart, times = _distances(wanted, found, limit, differs)
    furthest = np.where(times == times.max(), apart, -1.0)  # of those that miss their limit by most
    index = tuple(int(step) for step in np.unravel_index(int(np.argmax(furthest)), times.shape))
    scale = limit.scale or magnitude(wanted) or 1.0
    farthest = float(apart[index]) / scale
    values = f"expected {_value(wanted[index])}, found {_value(found[index])}"
    multiple, largest = float(times[index]), float(apart.max()) / scale
    described = f"{where}{_example(index, first)}: {values}, {farthest:.2g} of scale apart"
    if multiple <= 1:
        return Comparison(wanted.size, same, largest, multiple, worst=described)
    missed = "not bit-equal" if limit.is_exact else f"{_times(multiple)} the limit of {limit}"
    return Comparison(wanted.size, same, largest, multiple, problem=f"{described}: {missed}", worst=described)


def _distances(
    wanted: NDArray[Any], found: NDArray[Any], limit: Limit, differs: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far each float lies from the expected one, and how many times its limit that is."""
    wide, other = wanted.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.where(differs, np.abs(other - wide), 0.0)
        allowed = limit.atol + limit.rtol * np.abs(wide)
    apart = np.where(np.isfinite(apart), apart, np.inf)  # a NaN or an infinity is near nothing but itself
    if limit.ulps is not None:
        return apart, _ratio(_ulps(wanted, found), np.full(wanted.shape, float(limit.ulps)))
    return apart, _ratio(apart, np.where(np.isfinite(wide) & np.isfinite(other), allowed, 0.0))


def _times(multiple: float) -> str:
    return "infinitely" if math.isinf(multiple) else f"{multiple:,.3g} times"


def _ratio(distance: NDArray[np.float64], allowed: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(distance > 0, distance / allowed, 0.0)
    return np.where(np.isnan(ratio), np.inf, ratio)


def _ties(
    wanted: NDArray[Any], found: NDArray[Any], expected: Arrays, limits: Mapping[str, Limit]
) -> NDArray[np.bool_]:
    """Return where the expected and the found class have scores that tie within the limit.

    Scores are a float output [n, k] of the same signature, and classes its column numbers, or the strings
    that an output [n, k] names its columns with. A score [n, 1] is that of class 1 of two.
    """
    tied = np.zeros(wanted.shape, bool)
    for alias, scores in expected.items():
        array, limit = _plain(scores), limits.get(alias, EXACT)
        if not _is_float(array) or array.ndim != 2 or len(array) != len(wanted) or limit.ulps is not None:  # noqa: PLR2004
            continue
        values = array.astype(np.float64)
        allowed = 2 * (limit.atol + limit.rtol * np.abs(values))  # each of the two may have moved
        if values.shape[1] == 1:  # of two classes, 0.5 or a logit of 0 lies between
            between = 0.5 if values.min(initial=0) >= 0 and values.max(initial=0) <= 1 else 0.0
            values = np.hstack([2 * between - values, values])
            allowed = np.hstack([allowed, allowed])
        names = [np.arange(values.shape[1])[None, :].repeat(len(values), 0)]
        names += [
            plain
            for plain in map(_plain, expected.values())
            if plain.dtype.kind == "S" and plain.shape == values.shape
        ]
        for name in names:
            if (name.dtype.kind == "S") != (wanted.dtype.kind == "S"):
                continue
            for index in map(tuple, np.argwhere(wanted != found)):
                row = index[0]
                one, other = (np.flatnonzero(name[row] == each[index]) for each in (wanted, found))
                if len(one) and len(other):
                    gap = abs(values[row, one[0]] - values[row, other[0]])
                    tied[index] |= gap <= max(allowed[row, one[0]], allowed[row, other[0]])
    return tied


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """Return strings as dtype S, everything else as it is."""
    array = np.asarray(array)
    if array.dtype.kind == "U":
        return np.char.encode(array, "utf-8")
    return array.astype("S") if array.dtype.kind == "O" else array


def _unlike(expected: NDArray[Any], observed: NDArray[Any]) -> str:
    same_dtype = expected.dtype == observed.dtype or expected.dtype.kind == observed.dtype.kind == "S"
    if same_dtype and expected.shape == observed.shape:
        return ""
    return f"expected {_form(expected)}, found {_form(observed)}"


def _form(array: NDArray[Any]) -> str:
    name = "string" if array.dtype.kind == "S" else array.dtype.name
    return f"{name}{list(array.shape)}"


def _same(expected: NDArray[Any], observed: NDArray[Any]) -> NDArray[np.bool_]:
    equal = np.asarray(expected == observed)
    if _is_float(expected) or expected.dtype.kind == "c":
        equal |= np.isnan(expected) & np.isnan(observed)
    return equal


def _underflown(wanted: NDArray[Any], found: NDArray[Any], scale: float) -> NDArray[np.bool_]:
    """Return which values are so small, here and there, that flushed intermediate results decide them.

    They are below 64 times the smallest normal number of their dtype, and below 2^-40 of their output's
    scale. float16 is never flushed: it is computed as float32.
    """
    if wanted.dtype.name not in _SMALLEST_NORMAL:
        return np.zeros(wanted.shape, np.bool_)
    reach = min(64 * _SMALLEST_NORMAL[wanted.dtype.name], scale * 2.0**-40)
    return np.maximum(np.abs(wanted.astype(np.float64)), np.abs(found.astype(np.float64))) < reach


def _ulps(expected: NDArray[Any], observed: NDArray[Any]) -> NDArray[np.float64]:
    first, second = _ordered(expected), _ordered(observed)
    distances = np.maximum(first, second).astype(np.uint64) - np.minimum(first, second).astype(np.uint64)
    wrong = np.isnan(expected) != np.isnan(observed)
    return np.where(wrong, np.inf, np.where(_same(expected, observed), 0.0, distances.astype(np.float64)))


def _ordered(floats: NDArray[Any]) -> NDArray[np.int64]:
    """Return integers in the order of the floats, one apart for neighbours; both zeros are 0."""
    width = floats.dtype.itemsize
    bits = np.ascontiguousarray(floats).view(f"i{width}").astype(np.int64).reshape(floats.shape)
    magnitude = bits & np.int64(2 ** (8 * width - 1) - 1)
    return np.where(bits < 0, -magnitude, magnitude)


def _first(wrong: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(step) for step in np.argwhere(wrong)[0])


def _example(index: tuple[int, ...], first: int) -> str:
    if not index:
        return ""
    rest = f", {list(index[1:])}" if len(index) > 1 else ""
    return f", sample example {first + index[0]}{rest}"


def _value(value: Any) -> str:
    return (
        str(value) if isinstance(value, np.floating) or value.dtype.name == "bfloat16" else repr(value.item())
    )
