"""What a server answers about a batch, beside what it should: each example of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tasks.answers import limits, offline_answers
from tasks.answers.comparison import Limit
from tasks.answers.limits import Limits
from tasks.answers.served import Compared, ServerConditions
from tasks.core.artifacts import Candidate, Signature
from tasks.servers.serving_client import Answer

SIGNATURE = Signature("s", "predict", {"x": "string[?]"}, {"y": "float32[?,1]", "table": "float32[2]"})
TABLE = np.array([7, 8], np.float32)
HERE = {"machine": "a", "threads": "2"}
ALONE = ServerConditions(HERE, alone=True)


def rows(first: int, last: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.arange(first, last, dtype=np.float32).reshape(-1, 1)


@pytest.fixture
def candidate(tmp_path: Path) -> Candidate:
    """One of 16 examples, predicted in eights and all at once; the export ran on the first 8 of them."""
    for size in (8, 16):
        offline_answers.write(tmp_path, "predicted", "s", size, {"y": rows(0, 16), "table": TABLE})
    offline_answers.write(tmp_path, "exported", "s", 8, {"y": rows(0, 8), "table": TABLE})
    limit = Limit(1e-5, 1.6e-4, scale=16.0, repeats=True)
    limits.write(tmp_path, Limits({"s": {"y": limit, "table": limit}}, HERE))
    limits.write_exported(tmp_path, HERE)
    return Candidate(tmp_path, (SIGNATURE,), tmp_path, 16)


def asked(
    candidate: Candidate, first: int, server: ServerConditions = ALONE, examples: int = 8,
    **outputs: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> Compared:  # fmt: skip
    compared = Compared("Predict", SIGNATURE, candidate, server)
    compared.ask(lambda _: Answer({"table": TABLE, **outputs}, 1, 0.0), [b""] * examples, first)
    return compared


@pytest.mark.parametrize("first", [0, 8])
def test_a_row_for_each_example_is_compared(candidate: Candidate, first: int) -> None:
    """What has no row for each is compared as a whole."""
    found = asked(candidate, first, y=rows(first, first + 8))
    assert (found.problem, found.to_predicted.numbers) == ("", 8 + 2)


@pytest.mark.parametrize("answered", [1, 7, 9, 24])
def test_fewer_or_more_rows_than_examples_are_a_difference(candidate: Candidate, answered: int) -> None:
    """Though each row that is there is right."""
    found = asked(candidate, 0, y=rows(0, answered))
    assert found.problem == f"batch of 8, output 'y': expected float32[8, 1], found float32[{answered}, 1]"


def test_a_fixed_output_is_compared_in_every_batch(candidate: Candidate) -> None:
    """Not in the first alone."""
    found = asked(candidate, 8, y=rows(8, 16), table=TABLE + 1)
    assert "output 'table'" in found.problem


def test_one_bit_is_found_under_the_same_conditions_in_the_same_batch(candidate: Candidate) -> None:
    """In a batch that was not predicted, on another machine, or among other clients, it is rounding."""
    up = np.nextafter(rows(0, 8), np.float32(99))
    found = asked(candidate, 0, y=up)
    assert "batch of 8, output 'y', sample example 4, [0]: expected 4.0" in found.problem
    assert found.problem.endswith("not bit-equal")
    assert [check.limit for check in found.checks] == ["same bits", "same bits"]
    assert not asked(candidate, 1, y=up[1:4], examples=3).problem
    elsewhere = ServerConditions({**HERE, "machine": "b"}, alone=True)
    busy = ServerConditions(HERE, alone=False)
    for server, why in (
        (elsewhere, "another machine"),
        (busy, "other clients"),
        (ServerConditions(), "unknown"),
    ):
        found = asked(candidate, 0, server, y=up)
        assert not found.problem
        (check, _) = found.checks
        assert check.limit == "1e-05 of scale" and why in check.rule and "bit-equal" in str(check.observed)
        assert asked(candidate, 0, server, y=rows(0, 8) + np.float32(1e-2)).problem


def test_a_version_without_limits_is_held_to_those_of_auto(candidate: Candidate) -> None:
    """One of another release: rounding passes, and nothing else does."""
    (candidate.offline / "limits.json").unlink()
    assert not asked(candidate, 0, y=rows(0, 8) + np.float32(1e-5)).problem
    assert "times the limit of" in asked(candidate, 0, y=rows(0, 8) + np.float32(1e-3)).problem


def test_a_candidate_of_other_answers_names_the_first_example(candidate: Candidate) -> None:
    """By its number among the samples."""
    wrong = rows(8, 16)
    wrong[3] = 99
    assert "sample example 11, [0]: expected 11.0, found 99.0" in asked(candidate, 8, y=wrong).problem


def test_no_answer_is_a_problem(candidate: Candidate) -> None:
    """Or one without an output."""
    compared = Compared("Predict", SIGNATURE, candidate, ALONE)
    compared.ask(lambda _: Answer({"table": TABLE}, 1, 0.0), [b""] * 8, 0)
    assert compared.problem == "batch of 8, output 'y' is missing from the answer"
    assert replace(compared.to_predicted, problem="").numbers == 2
