"""Whether two arrays of answers are equal, bit for bit or within some units in the last place (ULPs).

NumPy only: the smoke test compares served numbers without TensorFlow. ULPs count representable floats,
as in Bruce Dawson, "Comparing Floating Point Numbers, 2012 Edition": bits of a float, read as an integer
with the sign folded, are in the order of the floats, so their difference is the number of steps between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from configs.schema import Ulps

WORLDS_APART = 2**63 - 1
"""Distance of a NaN from a number, and of two strings that differ."""


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
    """Index of the example (first dimension) that holds it."""

    @property
    def equal(self) -> bool:
        """Whether the array is as expected, within the limit."""
        return not self.difference


def limit(tolerance: Literal["exact"] | Ulps) -> int:
    """Return the most ULPs that `tolerance` allows."""
    return 0 if tolerance == "exact" else tolerance.ulps


def compare(expected: NDArray[Any], observed: NDArray[Any], most_ulps: int = 0) -> Comparison:
    """Compare two arrays whose dtypes and shapes must be the same; bytes of any length are one dtype.

    NaN equals NaN, -0.0 equals 0.0. Strings (dtype S, U or object) and booleans must be equal; NULs at
    the end of a string do not count, as NumPy does not store them.
    """
    expected, observed = _plain(expected), _plain(observed)
    if problem := _unlike(expected, observed):
        return Comparison(0, WORLDS_APART, problem)
    distances = _distances(expected, observed)
    largest = int(distances.max(initial=0))
    if largest <= most_ulps:
        return Comparison(expected.size, largest)
    first = tuple(int(i) for i in np.argwhere(distances > most_ulps)[0])
    return Comparison(
        expected.size, largest, _described(first, expected, observed, distances), (first or (0,))[0]
    )


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
