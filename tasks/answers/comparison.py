"""Whether two arrays of answers are equal, bit for bit or within some units in the last place (ULPs).

NumPy only: the smoke test compares served numbers without TensorFlow. ULPs count representable floats,
as in Bruce Dawson, "Comparing Floating Point Numbers, 2012 Edition": bits of a float, read as an integer
with the sign folded, are in the order of the floats, so their difference is the number of steps between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from configs.schema import Tolerance, Ulps

WORLDS_APART = 2**63 - 1
"""Distance of a NaN from a number, and of two strings that differ."""


class Limit(NamedTuple):
    """How far a float may lie from the expected one. By `rtol` all else must be equal."""

    ulps: int = 0
    rtol: float = 0.0

    @property
    def shown(self) -> int | str:
        """What a check has as its limit."""
        return f"rtol {self.rtol:g}" if self.rtol else self.ulps

    @property
    def rule(self) -> str:
        """What a check has as its rule, before what is expected."""
        if self.rtol:
            return f"within rtol {self.rtol:g} of"
        return f"within {self.ulps} ULPs of" if self.ulps else "equal to"


EXACT = Limit()


def limit(tolerance: Tolerance) -> Limit:
    """Return the limit that `tolerance` is."""
    if isinstance(tolerance, str):
        return EXACT
    return Limit(ulps=tolerance.ulps) if isinstance(tolerance, Ulps) else Limit(rtol=tolerance.rtol)


@dataclass(frozen=True)
class Comparison:
    """How far an array lies from the expected one."""

    numbers: int
    """How many values were compared."""
    largest_ulps: int
    """Steps between representable values (for integers: the difference); 0 where all are equal."""
    difference: str = ""
    """The first value beyond the limit, or what else is wrong; empty where there is nothing."""
    example: int | None = None
    """Index of the example (first dimension) that holds it; without one, of the first that differs at all."""
    first: str = ""
    """The first value that differs at all, though within the limit; empty where there is none."""

    @property
    def equal(self) -> bool:
        """Whether the array is as expected, within the limit."""
        return not self.difference


class Tally:
    """What many comparisons come to: how many numbers, the largest difference, and where the first is."""

    def __init__(self, limit: Limit) -> None:
        self.limit, self.numbers, self.largest_ulps = limit, 0, 0
        self.problem = ""
        """The first value beyond the limit, or what else is wrong; empty where nothing is."""
        self._first = ""

    def take(self, found: Comparison, output: str, first_example: int) -> None:
        """Add a comparison of an output of the examples from `first_example` on."""
        self.numbers += found.numbers
        self.largest_ulps = max(self.largest_ulps, found.largest_ulps)
        what = found.difference or found.first
        if what:
            example = "" if found.example is None else f", sample example {first_example + found.example}"
            self._first = self._first or f"{output}{example}: {what}"
            if found.difference:
                self.fail(f"{output}{example}: {what}")

    def fail(self, problem: str) -> None:
        """Note what is wrong, unless something was before."""
        self.problem = self.problem or problem

    @property
    def observed(self) -> str:
        """Say how much was compared, how far it lies apart, and where it first differs."""
        apart = f", {self.largest_ulps:,} ULPs at most" if self.largest_ulps < WORLDS_APART else ""
        told = f"{self.numbers:,} numbers{apart}" if self.numbers else ""
        return "; first: ".join(part for part in (told, self.problem or self._first) if part)


def compare(expected: NDArray[Any], observed: NDArray[Any], limit: Limit = EXACT) -> Comparison:
    """Compare two arrays whose dtypes and shapes must be the same; bytes of any length are one dtype.

    NaN equals NaN, -0.0 equals 0.0. Strings (dtype S, U or object) and booleans must be equal; NULs at
    the end of a string do not count, as NumPy does not store them.
    """
    expected, observed = _plain(expected), _plain(observed)
    if problem := _unlike(expected, observed):
        return Comparison(0, WORLDS_APART, problem)
    distances = _distances(expected, observed)
    largest = int(distances.max(initial=0))
    if not largest:
        return Comparison(expected.size, 0)
    beyond = _beyond(expected, observed, distances, limit)
    missed = bool(beyond.any())
    index = tuple(int(i) for i in np.argwhere(beyond if missed else distances)[0])
    told, example = _described(index, expected, observed, distances), (index or (0,))[0]
    return Comparison(expected.size, largest, told if missed else "", example, first="" if missed else told)


def _beyond(
    expected: NDArray[Any], observed: NDArray[Any], distances: NDArray[np.uint64], limit: Limit
) -> NDArray[np.bool_]:
    """Return which values lie beyond the limit."""
    if not limit.rtol or expected.dtype.kind != "f":
        return np.asarray(distances > limit.ulps)
    wide, other = expected.astype(np.float64), observed.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinities, which are near nothing but themselves
        near = np.abs(other - wide) <= limit.rtol * np.abs(wide)
    return np.asarray((distances > 0) & ~(near & np.isfinite(wide)))


def not_finite(observed: NDArray[Any]) -> Comparison | None:
    """Return where the first NaN or infinity is; None where there is none."""
    if observed.dtype.kind not in "fc" or np.isfinite(observed).all():
        return None
    index = [int(i) for i in np.argwhere(~np.isfinite(observed))[0]]
    problem = f"{index}: expected a finite number, found {observed[tuple(index)]}"
    return Comparison(0, WORLDS_APART, problem, index[0] if index else None)


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


def _distances(expected: NDArray[Any], observed: NDArray[Any]) -> NDArray[np.uint64]:
    kind = expected.dtype.kind
    if kind == "f":
        return _float_distances(expected, observed)
    if kind in "iu":
        larger, smaller = np.maximum(expected, observed), np.minimum(expected, observed)
        return larger.astype(np.uint64) - smaller.astype(np.uint64)  # modulo 2**64: right for any sign
    return np.where(expected == observed, np.uint64(0), np.uint64(WORLDS_APART))


def _float_distances(expected: NDArray[Any], observed: NDArray[Any]) -> NDArray[np.uint64]:
    first, second = _ordered(expected), _ordered(observed)
    distances = np.maximum(first, second).astype(np.uint64) - np.minimum(first, second).astype(np.uint64)
    nan, other_nan = np.isnan(expected), np.isnan(observed)
    distances = np.where(nan != other_nan, np.uint64(WORLDS_APART), distances)
    return np.where(nan & other_nan, np.uint64(0), distances)


def _ordered(floats: NDArray[Any]) -> NDArray[np.int64]:
    """Return integers in the order of the floats, one apart for neighbours; both zeros are 0."""
    width = floats.dtype.itemsize
    bits = np.ascontiguousarray(floats).view(f"i{width}").astype(np.int64).reshape(floats.shape)
    magnitude = bits & np.int64(2 ** (8 * width - 1) - 1)
    return np.where(bits < 0, -magnitude, magnitude)


def _described(
    index: tuple[int, ...], expected: NDArray[Any], observed: NDArray[Any], distances: NDArray[np.uint64]
) -> str:
    ulps = int(distances[index])
    apart = f" ({ulps:,} ULPs apart)" if expected.dtype.kind == "f" and ulps < WORLDS_APART else ""
    return f"{list(index)}: expected {_value(expected[index])}, found {_value(observed[index])}{apart}"


def _value(value: Any) -> str:
    return repr(value.item()) if not isinstance(value, np.floating) else str(value)
