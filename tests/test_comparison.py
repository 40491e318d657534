"""Whether answers are equal: limits at the scale of an output, bits, ties, and what no limit lets pass."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from configs.schema.answers import AnswersConfig, Near, Ulps
from tasks.answers import comparison, limits, offline_answers
from tasks.answers.comparison import EXACT, Comparison, Limit, floor
from tasks.answers.held_to import HeldTo
from tasks.answers.limits import Limits, derive

FLOATS = {np.float16: 16, np.float32: 32, np.float64: 64}


def compare(
    expected: NDArray[Any], observed: NDArray[Any], limit: Limit = EXACT, bits: bool = False
) -> Comparison:
    """Compare one output, `y`."""
    return comparison.compare({"y": expected}, {"y": observed}, {"y": limit}, bits=bits)


def test_equal_arrays_are_equal_and_counted() -> None:
    """Equal arrays have no difference, and each value is counted, and is the same."""
    found = compare(np.ones((3, 4), np.float32), np.ones((3, 4), np.float32))
    assert found == Comparison(numbers=12, same=12)
    assert found.observed == "12 numbers bit-equal"


REPEATS = Limit(rtol=1e-5, scale=1.0, repeats=True)
UNDERFLOWN = 2.2072766e-38  # found where 0.0 was expected: digits after 60,000 steps, in the canary


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_what_underflows_in_one_thread_only_is_equal(dtype: Any) -> None:
    """Threads differ in whether they flush subnormal results. It passes, but is not counted as equal bits."""
    found = compare(np.array([1, 0], dtype), np.array([1, UNDERFLOWN], dtype), REPEATS, bits=True)
    assert found.equal
    assert (found.numbers, found.same, found.broken) == (2, 1, False)
    assert found.observed == "within 2.2e-38 of scale, 50% bit-equal"


@pytest.mark.parametrize(
    ("dtype", "wanted", "observed", "limit"),
    [
        (np.float32, 0.0, 1e-35, REPEATS),
        (np.float32, 1e-36, UNDERFLOWN, REPEATS),
        (np.float32, 0.0, UNDERFLOWN, replace(REPEATS, scale=1e-36)),
        (np.float32, 0.0, UNDERFLOWN, EXACT),
        (np.float16, 0.0, 6e-8, REPEATS),
        (np.float64, 0.0, UNDERFLOWN, REPEATS),
    ],
)
def test_what_no_underflow_explains_is_not_equal(
    dtype: Any, wanted: float, observed: float, limit: Limit
) -> None:
    """Larger numbers, outputs that are all small, a dtype that is not flushed, and a tolerance of `exact`."""
    assert not compare(np.array([wanted], dtype), np.array([observed], dtype), limit, bits=True).equal


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_neighbour_is_one_ulp_away(dtype: Any) -> None:
    """The next representable float of any width, up or down, is 1 ULP away, across zero too."""
    for value in (1.0, -1.0, 0.0, 0.1):
        for towards in (np.inf, -np.inf):
            here: NDArray[Any] = np.array([value], dtype)
            assert compare(here, np.nextafter(here, dtype(towards)), Limit(ulps=1)).times == 1


@given(st.floats(width=32, allow_nan=False), st.integers(1, 20))
def test_steps_up_are_ulps(value: float, steps: int) -> None:
    """A float moved by n representable steps is n ULPs away, until it reaches infinity."""
    here = np.array([value], np.float32)
    there = here
    for _ in range(steps):
        there = np.nextafter(there, np.float32(np.inf))
    if not np.isinf(there[0]):
        assert compare(here, there, Limit(ulps=steps)).equal
        assert steps == 1 or not compare(here, there, Limit(ulps=steps - 1)).equal


def test_a_difference_names_output_example_both_values_and_how_far_beyond_the_limit_it_is() -> None:
    """Of the value that misses its limit by most."""
    expected = np.array([[1, 2], [3, 4]], np.float32)
    observed = expected.copy()
    observed[0, 0] += np.float32(1e-6)
    observed[1, 0] = 3.5
    found = compare(expected, observed, Limit(1e-3, 4e-3, scale=4.0))
    assert found.problem == (
        "output 'y', sample example 1, [0]: expected 3.0, found 3.5, 0.12 of scale apart: "
        "71.4 times the limit of 0.001 of scale"
    )
    assert (found.numbers, found.same) == (4, 2)
    within = compare(expected, observed, Limit(0.1, 0.4, scale=4.0))
    assert within.equal and within.worst.startswith("output 'y', sample example 1, [0]: expected 3.0")
    assert within.observed == "within 0.12 of scale, 50% bit-equal"


def test_values_near_zero_are_compared_at_the_scale_of_their_output() -> None:
    """1.7006624e-07 beside probabilities up to 1: 11 ULPs of its own apart, and 1e-13 of the scale."""
    expected = np.array([[1.0, 1.700664e-07]], np.float32)
    observed = np.array([[1.0, 1.7006624e-07]], np.float32)
    limit = derive("auto", {64: expected, 1: expected}, None)
    assert compare(expected, observed, limit).equal
    assert not compare(expected, observed + np.float32(1e-4), limit).equal
    assert not compare(expected, observed, EXACT).equal


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_auto_allows_a_few_epsilons_of_the_scale_and_no_more(dtype: Any) -> None:
    """At the largest value and near zero alike; four times as much is beyond."""
    expected = np.array([[8.0, 0.01, -4.0]]).astype(dtype)
    limit = derive("auto", {1: expected}, None, computed_in_double=True)
    step = floor(np.dtype(dtype).name) * 8.0
    for index in (0, 1):
        for factor, passes in ((0.5, True), (4.0, False)):
            moved = expected.copy()
            moved[0, index] = dtype(float(moved[0, index]) + factor * step)
            assert compare(expected, moved, limit).equal is passes, (dtype, index, factor)


def test_auto_takes_its_limit_from_how_far_batch_sizes_lie_apart() -> None:
    """Eight times the spread; integers and strings have none."""
    whole = np.array([[1.0], [2.0]], np.float32)
    apart = {64: whole, 1: whole + np.float32(1e-5)}
    assert derive("auto", apart, None).rtol == pytest.approx(8 * 1e-5 / 2, rel=0.05)
    assert derive("auto", {64: whole, 1: whole}, None).rtol == floor("float32")
    assert derive("auto", {64: np.array([1, 2]), 1: np.array([1, 2])}, None).is_exact


def test_a_float64_output_is_as_exact_as_what_it_is_computed_from() -> None:
    """A float32 model whose predictions are cast: rounded in float32, wherever no batch size shows it."""
    whole = np.array([[1.0], [2.0]])
    assert derive("auto", {1: whole}, None).rtol == floor("float32")
    assert derive("auto", {1: whole}, None, computed_in_double=True).rtol == floor("float64")


def test_a_model_that_its_batch_changes_is_not_reproducible() -> None:
    """Or another process; a limit of 0.1% is the most that `auto` sets."""
    whole = np.array([[1.0], [2.0]], np.float32)
    for again in ({64: whole, 1: whole * 1.01}, {64: whole * 1.01, 1: whole}):
        limit = derive("auto", {64: whole, 1: whole}, again)
        assert limit.too_far == pytest.approx(0.01, rel=0.01) and limit.rtol == 1e-3
    assert derive("auto", {64: whole, 1: whole * 1.01}, None).too_far == pytest.approx(0.01, rel=0.01)
    assert derive(Near(rtol=0.1), {64: whole, 1: whole * 1.01}, None).too_far is None
    empty = {64: whole, 1: whole[:1]}
    assert derive("auto", empty, None).too_far == math.inf


def test_the_same_bits_are_demanded_of_what_repeats_itself() -> None:
    """Of the least change; not without `bits`, nor where the model does not repeat itself."""
    whole = np.array([[1.0], [2.0]], np.float32)
    up = np.nextafter(whole, np.float32(9))
    repeating = derive("auto", {64: whole, 1: up}, {64: whole, 1: up})
    assert repeating.repeats
    found = compare(whole, up, repeating, bits=True)
    assert found.problem.endswith("of scale apart: not bit-equal") and found.times == math.inf
    assert compare(whole, up, repeating, bits=False).equal
    assert compare(whole, whole, repeating, bits=True).equal
    drifting = derive("auto", {64: whole, 1: up}, {64: whole, 1: whole})
    assert not drifting.repeats and compare(whole, up, drifting, bits=True).equal
    assert not derive("auto", {64: whole, 1: up}, None).repeats


def test_a_tolerance_is_chosen() -> None:
    """`exact`, ULPs, relative to value and scale, or relative and absolute."""
    array = np.array([[-4.0], [2.0]], np.float32)
    assert derive("exact", {1: array}, {1: array}) == Limit(scale=4.0)
    assert derive(Ulps(ulps=4), {1: array}, {1: array}) == Limit(ulps=4, scale=4.0)
    assert derive(Near(rtol=1e-3), {1: array}, {1: array}) == Limit(1e-3, 4e-3, scale=4.0)
    assert derive(Near(rtol=1e-3, atol=0), {1: array}, {1: array}) == Limit(1e-3, 0.0, scale=4.0)
    assert derive(Near(atol=0.5), {1: array}, {1: array}) == Limit(0.0, 0.5, scale=4.0)


def test_a_tolerance_may_be_relative_alone() -> None:
    """To the expected number, above and below; integers and infinities are to be equal."""
    near = Limit(rtol=1e-3)
    expected = np.array([1000.0, -1000.0, 0.0, np.inf], np.float32)
    assert compare(expected, expected + np.array([1, -1, 0, 0], np.float32), near).equal
    beyond = compare(expected, expected + np.array([0, 1.01, 0, 0], np.float32), near)
    assert "sample example 1:" in beyond.problem
    assert not compare(expected, np.array([1000, -1000, 1e-30, np.inf], np.float32), near).equal
    assert not compare(expected, np.array([1000, -1000, 0, 1e38], np.float32), near).equal
    assert not compare(np.array([1000]), np.array([1001]), near).equal


def test_single_outputs_have_their_own_tolerance() -> None:
    """By signature and output; all others that of the whole pipeline."""
    answers = AnswersConfig.model_validate({"outputs": {"predict": {"logits": {"rtol": 0.1}}}})
    assert answers.tolerance_of("predict", "logits") == Near(rtol=0.1)
    assert answers.tolerance_of("predict", "probabilities") == "auto"
    assert answers.tolerance_of("flower", "logits") == "auto"


def test_nan_equals_only_nan_and_zeros_have_no_sign() -> None:
    """NaN is as far from any number as can be; NaN from NaN, and -0.0 from 0.0, are not apart."""
    nan, one = np.array([np.nan], np.float32), np.array([1], np.float32)
    assert compare(nan, nan).equal
    for limit in (Limit(ulps=1_000_000), Limit(0.9, 0.9)):
        assert compare(nan, one, limit).times == compare(one, nan, limit).times == math.inf
    assert compare(np.array([-0.0]), np.array([0.0])).equal


@pytest.mark.parametrize("towards", [np.inf, -np.inf])
def test_infinity_is_near_nothing_but_itself(towards: float) -> None:
    """The largest float is its neighbour in ULPs, and infinitely far from it otherwise."""
    largest = np.array([np.copysign(np.finfo(np.float32).max, towards)], np.float32)
    infinite = np.array([towards], np.float32)
    assert compare(largest, infinite, Limit(ulps=1)).equal
    assert not compare(largest, infinite, Limit(0.9, 1e38)).equal
    assert not compare(infinite, -infinite, Limit(0.9, 1e38)).equal
    assert compare(infinite, infinite).equal
    assert comparison.not_finite({"y": infinite}).problem.startswith(
        "output 'y', sample example 0: expected a finite"
    )


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_integers_are_equal_or_not(one: int, other: int) -> None:
    """Over all of int64, whatever the limit."""
    found = compare(np.array([one]), np.array([other]), Limit(0.9, 1e18))
    assert found.equal == (one == other)


def test_strings_are_equal_or_not_whatever_their_dtype() -> None:
    """Bytes as TensorFlow gives them (object), as npz keeps them (S) and text are one dtype."""
    objects = np.array([b"a", b"bcd"], dtype=object)
    assert compare(np.array([b"a", b"bcd"]), objects).equal
    assert compare(np.array(["a", "bcd"]), objects).equal
    problem = compare(np.array([b"a", b"bc"]), objects).problem
    assert problem == "output 'y', sample example 1: expected b'bc', found b'bcd'"


@pytest.mark.parametrize(
    ("observed", "message"),
    [
        (np.zeros((2, 3), np.float64), "expected float32[2, 3], found float64[2, 3]"),
        (np.zeros((3, 2), np.float32), "expected float32[2, 3], found float32[3, 2]"),
        (np.zeros((2, 3), ml_dtypes.bfloat16), "expected float32[2, 3], found bfloat16[2, 3]"),
    ],
)
def test_another_dtype_or_shape_is_a_difference(observed: NDArray[Any], message: str) -> None:
    """Nothing is broadcast or converted."""
    assert compare(np.zeros((2, 3), np.float32), observed).problem == f"output 'y': {message}"


def test_a_scalar_and_no_values_at_all_are_compared() -> None:
    """Arrays without dimensions, and without values, are not special."""
    assert compare(np.array(1.0), np.array(2.0)).problem.startswith("output 'y': expected 1.0, found 2.0")
    assert compare(np.zeros((0, 3)), np.zeros((0, 3))).equal


def test_a_missing_output_is_a_problem() -> None:
    """And another output beside it is still compared."""
    ones = np.ones(3, np.float32)
    found = comparison.compare({"x": ones, "y": ones}, {"y": ones}, {}, bits=False)
    assert (found.problem, found.numbers) == ("output 'x' is missing from the answer", 3)


SCORES = np.array([[0.4, 0.4 - 1e-8, 0.2], [0.7, 0.2, 0.1]])
NEAR = {"scores": Limit(1e-6, 1e-6), "ids": EXACT, "classes": EXACT}


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_class_ids_may_differ_if_their_scores_tie(shape: tuple[int, ...]) -> None:
    """Within the limit of the scores; a class with another score is wrong."""
    expected = {"scores": SCORES, "ids": np.array([0, 0]).reshape(shape)}
    swapped = {"scores": SCORES, "ids": np.array([1, 0]).reshape(shape)}
    found = comparison.compare(expected, swapped, NEAR, bits=False)
    assert found.equal and found.ties == 1 and found.observed.endswith("1 ties")
    for wrong in ([2, 0], [0, 1], [7, 0], [-1, 0]):
        other = {"scores": SCORES, "ids": np.array(wrong).reshape(shape)}
        assert "output 'ids'" in comparison.compare(expected, other, NEAR, bits=False).problem


def test_class_ids_of_what_repeats_itself_do_not_differ() -> None:
    """A tie is no excuse where the same bits are due, nor under `exact`."""
    expected = {"scores": SCORES, "ids": np.array([0, 0])}
    swapped = {"scores": SCORES, "ids": np.array([1, 0])}
    repeating = {alias: replace(limit, repeats=True) for alias, limit in NEAR.items()}
    assert not comparison.compare(expected, swapped, repeating, bits=True).equal
    assert not comparison.compare(expected, swapped, {}, bits=False).equal


def test_classes_are_found_by_the_names_of_their_columns() -> None:
    """Strings, as a head with a vocabulary has them; and ranks, position by position."""
    names = np.array([[b"cat", b"dog", b"owl"]] * 2)
    expected = {"scores": SCORES, "all": names, "classes": np.array([[b"cat"], [b"cat"]])}
    tied = {**expected, "classes": np.array([[b"dog"], [b"cat"]])}
    assert comparison.compare(expected, tied, NEAR, bits=False).ties == 1
    wrong = {**expected, "classes": np.array([[b"owl"], [b"cat"]])}
    assert "expected b'cat', found b'owl'" in comparison.compare(expected, wrong, NEAR, bits=False).problem
    ranks = {"scores": SCORES, "ids": np.array([[0, 1, 2], [0, 1, 2]])}
    assert (
        comparison.compare(ranks, {**ranks, "ids": np.array([[1, 0, 2], [0, 1, 2]])}, NEAR, bits=False).ties
        == 2
    )
    assert not comparison.compare(
        ranks, {**ranks, "ids": np.array([[0, 1, 2], [1, 0, 2]])}, NEAR, bits=False
    ).equal


def test_a_binary_class_may_differ_where_its_one_score_is_halfway() -> None:
    """A probability of 0.5, or a logit of 0."""
    for between, far in ((0.5, 0.9), (0.0, -3.0)):
        scores = np.array([[between + 1e-8], [far]])
        expected = {"scores": scores, "ids": np.array([[1], [0]])}
        assert (
            comparison.compare(expected, {**expected, "ids": np.array([[0], [0]])}, NEAR, bits=False).ties
            == 1
        )
        assert not comparison.compare(
            expected, {**expected, "ids": np.array([[1], [1]])}, NEAR, bits=False
        ).equal


def test_comparisons_add_up() -> None:
    """To the sum of numbers, the first problem and the largest difference."""
    ones = np.ones((2, 1), np.float32)
    limit = Limit(0.1, 0.1, scale=1.0)
    total = compare(ones, ones * np.float32(1.01), limit) + compare(ones, ones * np.float32(1.05), limit)
    assert (total.numbers, total.same, total.equal) == (4, 0, True)
    assert total.largest == pytest.approx(0.05, rel=1e-3)
    assert total.observed == "within 0.05 of scale, 0% bit-equal"
    total += compare(ones, ones * 2, limit) + compare(ones, ones * 3, limit)
    assert "found 2.0" in total.problem and total.times == pytest.approx(10)


def test_bits_are_due_under_the_same_conditions_only() -> None:
    """And if no other client's request can share the run; a person is told why they are not."""
    known = Limits({"s": {"y": Limit(1e-5, 1e-5, repeats=True)}}, {"machine": "a", "threads": "2"})
    alike = HeldTo.of(known, "s", {"machine": "a", "threads": "2"}, alone=True)
    assert alike.bits and alike.limit == "same bits"
    other = HeldTo.of(known, "s", {"machine": "a", "threads": "4"}, alone=True)
    assert (other.bits, other.why) == (False, "another threads")
    assert HeldTo.of(known, "s", {}, alone=True).why == "conditions unknown"
    shared = HeldTo.of(known, "s", {"machine": "a", "threads": "2"}, alone=False)
    assert not shared.bits and "share a batch" in shared.why
    assert not HeldTo.of(replace(known, conditions={}), "s", {}, alone=True).bits


def test_comparing_needs_no_tensorflow() -> None:
    """NumPy alone decides."""
    program = "import sys, tasks.answers.comparison, tasks.answers.offline_answers, tasks.answers.limits\n"
    program += "assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_offline_answers_survive_any_name(tmp_path: Path) -> None:
    """Signatures and aliases may hold `/`, `:` or be called like an argument of np.savez."""
    outputs = {
        "file": np.array([1, 2]), "a/b": np.array([b"x", b"yz"], dtype=object), "c": np.array(0.5),
        "half.bfloat16": np.array([1.5], ml_dtypes.bfloat16),
    }  # fmt: skip
    offline_answers.write(tmp_path, "predicted", "raw:a/b", 8, outputs)
    offline_answers.write(tmp_path, "predicted", "a/b", 2, {"c": np.array(0.25)})
    offline_answers.write(tmp_path, "exported", "raw:a/b", 1, {"c": np.array(0.25)})
    found = offline_answers.read(tmp_path, "predicted", "raw:a/b")
    assert found.keys() == {8} and found[8].keys() == outputs.keys()
    assert all(comparison.identical(outputs[name], found[8][name]) for name in outputs)


def test_limits_travel_as_json(tmp_path: Path) -> None:
    """Infinite spreads included; a file that is damaged is as none."""
    written = Limits({"s": {"y": Limit(1e-3, 1.0, scale=3.0, too_far=math.inf)}}, {"machine": "a"})
    limits.write(tmp_path, written)
    assert limits.read(tmp_path) == written
    (tmp_path / "limits.json").write_bytes((tmp_path / "limits.json").read_bytes()[:-4])
    assert limits.read(tmp_path) == Limits()
