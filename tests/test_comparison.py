"""Comparing arrays of answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from configs.schema import Rtol, Ulps
from tasks.answers import offline_answers
from tasks.answers.comparison import WORLDS_APART, Limit, Tally, compare, limit

FLOATS = {np.float16: 16, np.float32: 32, np.float64: 64}


def test_equal_arrays_are_equal_and_counted() -> None:
    """Equal arrays have no difference, and each value is counted."""
    found = compare(np.ones((3, 4), np.float32), np.ones((3, 4), np.float32))
    assert found.equal
    assert (found.numbers, found.largest_ulps) == (12, 0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_neighbour_is_one_ulp_away(dtype: Any) -> None:
    """The next representable float of any width, up or down, is 1 ULP away, across zero too."""
    for value in (1.0, -1.0, 0.0, 0.1):
        for towards in (np.inf, -np.inf):
            here: NDArray[Any] = np.array([value], dtype)
            assert compare(here, np.nextafter(here, dtype(towards)), Limit(1)).largest_ulps == 1


@given(st.floats(width=32, allow_nan=False), st.integers(0, 1000))
def test_steps_up_are_ulps(value: float, steps: int) -> None:
    """A float moved by n representable steps is n ULPs away, until it reaches infinity."""
    here = np.array([value], np.float32)
    there = here
    for _ in range(min(steps, 20)):
        there = np.nextafter(there, np.float32(np.inf))
    reached = compare(here, there).largest_ulps
    assert reached == min(steps, 20) or np.isinf(there[0])


def test_the_largest_difference_is_reported_and_the_first_one_located() -> None:
    """Beyond the limit, the first value is named with its index, both numbers and the ULPs between."""
    expected = np.array([[1, 2], [3, 4]], np.float32)
    observed = expected.copy()
    observed[1, 0] = np.nextafter(np.nextafter(np.float32(3), np.float32(9)), np.float32(9))
    found = compare(expected, observed, Limit(1))
    assert found.largest_ulps == 2
    assert found.example == 1
    assert found.difference == "[1, 0]: expected 3.0, found 3.0000005 (2 ULPs apart)"
    within = compare(expected, observed, Limit(2))
    assert within.equal and within.first == found.difference


def test_nan_equals_only_nan_and_zeros_have_no_sign() -> None:
    """NaN is as far from any number as can be; NaN from NaN, and -0.0 from 0.0, are not apart."""
    nan, one = np.array([np.nan], np.float32), np.array([1], np.float32)
    assert compare(nan, nan).equal
    assert compare(nan, one, Limit(1_000_000)).largest_ulps == WORLDS_APART
    assert compare(np.array([-0.0]), np.array([0.0])).equal


@pytest.mark.parametrize("towards", [np.inf, -np.inf])
def test_infinity_is_one_step_beyond_the_largest_float(towards: float) -> None:
    """The largest float and infinity are neighbours; infinities of both signs are far apart."""
    largest = np.array([np.copysign(np.finfo(np.float32).max, towards)], np.float32)
    infinite = np.array([towards], np.float32)
    assert compare(largest, infinite).largest_ulps == 1
    assert compare(infinite, -infinite).largest_ulps > 2**31


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_integers_differ_by_their_difference(one: int, other: int) -> None:
    """Integers are compared over all of int64 without overflow."""
    found = compare(np.array([one]), np.array([other]))
    assert found.largest_ulps == abs(one - other)
    assert found.equal == (one == other)


def test_strings_are_equal_or_not_whatever_their_dtype() -> None:
    """Bytes as TensorFlow gives them (object), as npz keeps them (S) and text are one dtype."""
    objects = np.array([b"a", b"bcd"], dtype=object)
    assert compare(np.array([b"a", b"bcd"]), objects).equal
    assert compare(np.array(["a", "bcd"]), objects).equal
    assert compare(np.array([b"a", b"bc"]), objects).difference == "[1]: expected b'bc', found b'bcd'"


@pytest.mark.parametrize(
    ("observed", "message"),
    [
        (np.zeros((2, 3), np.float64), "expected float32[2, 3], found float64[2, 3]"),
        (np.zeros((3, 2), np.float32), "expected float32[2, 3], found float32[3, 2]"),
    ],
)
def test_another_dtype_or_shape_is_a_difference(observed: NDArray[Any], message: str) -> None:
    """Nothing is broadcast or converted."""
    assert compare(np.zeros((2, 3), np.float32), observed).difference == message


def test_a_scalar_and_no_values_at_all_are_compared() -> None:
    """Arrays without dimensions, and without values, are not special."""
    assert compare(np.array(1.0), np.array(2.0)).difference.startswith("[]: expected 1.0, found 2.0")
    assert compare(np.zeros((0, 3)), np.zeros((0, 3))).equal


def test_a_tolerance_is_a_number_of_ulps() -> None:
    """`exact` allows none."""
    assert limit("exact") == Limit(0)
    assert limit(Ulps(ulps=4)) == Limit(4)


def test_a_tolerance_may_be_relative() -> None:
    """To the expected number, above and below; integers and infinities are to be equal."""
    near = limit(Rtol(rtol=1e-3))
    expected = np.array([1000.0, -1000.0, 0.0, np.inf], np.float32)
    assert compare(expected, expected + np.array([1, -1, 0, 0], np.float32), near).equal
    beyond = compare(expected, expected + np.array([0, 1.01, 0, 0], np.float32), near)
    assert beyond.example == 1 and not beyond.equal
    assert not compare(expected, np.array([1000, -1000, 1e-30, np.inf], np.float32), near).equal
    assert not compare(expected, np.array([1000, -1000, 0, 1e38], np.float32), near).equal
    assert not compare(np.array([1000]), np.array([1001]), near).equal


def test_a_tally_tells_the_largest_difference_and_the_first_example() -> None:
    """Of many comparisons: the one beyond the limit, or else the first that differs at all."""
    ones = np.ones((2, 1), np.float32)
    above = np.nextafter(ones, np.float32(2))
    tally = Tally(Limit(1))
    tally.take(compare(ones, ones, tally.limit), "output 'y'", 0)
    assert tally.observed == "2 numbers, 0 ULPs at most"
    tally.take(compare(ones, above, tally.limit), "output 'y'", 2)
    assert (tally.problem, tally.observed) == (
        "", "4 numbers, 1 ULPs at most; first: output 'y', sample example 2: "
        "[0, 0]: expected 1.0, found 1.0000001 (1 ULPs apart)",
    )  # fmt: skip
    tally.take(compare(ones, ones * 2, tally.limit), "output 'y'", 4)
    assert tally.problem.startswith("output 'y', sample example 4: [0, 0]: expected 1.0, found 2.0")
    assert tally.observed.endswith(tally.problem)


def test_comparing_needs_no_tensorflow() -> None:
    """The smoke test's process compares with NumPy alone."""
    program = "import sys, tasks.answers.comparison, tasks.answers.offline_answers\n"
    program += "assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_offline_answers_survive_any_name(tmp_path: Path) -> None:
    """Signatures and aliases may hold `/`, `:` or be called like an argument of np.savez."""
    outputs = {"file": np.array([1, 2]), "a/b": np.array([b"x", b"yz"], dtype=object), "c": np.array(0.5)}
    offline_answers.write(tmp_path, "raw:a/b", outputs)
    assert [path.name for path in tmp_path.iterdir()] == ["raw%3Aa%2Fb.npz"]
    found = offline_answers.read(tmp_path, "raw:a/b")
    assert found.keys() == outputs.keys()
    assert all(compare(outputs[name], found[name]).equal for name in outputs)
