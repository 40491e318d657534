"""What a server answers about a batch, beside what it should: each example of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks.answers import offline_answers
from tasks.answers.served import Compared
from tasks.artifacts import Candidate, Signature
from tasks.servers.serving_client import Answer

SIGNATURE = Signature("s", "predict", {"x": "string[?]"}, {"y": "float32[?,1]", "table": "float32[2]"})
TABLE = np.array([7, 8], np.float32)


def rows(first: int, last: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.arange(first, last, dtype=np.float32).reshape(-1, 1)


@pytest.fixture
def candidate(tmp_path: Path) -> Candidate:
    """One of 16 examples; the export was asked about the first 8 of them, in eights."""
    offline_answers.write(tmp_path, "s", {"y": rows(0, 16), "table": TABLE})
    offline_answers.write_in_process(tmp_path, "s", 8, {"y": rows(0, 8), "table": TABLE})
    return Candidate(tmp_path, (SIGNATURE,), tmp_path, 16)


def asked(
    candidate: Candidate, first: int, **outputs: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> Compared:
    compared = Compared("Predict", SIGNATURE, candidate, "exact")
    compared.ask(lambda _: Answer({"table": TABLE, **outputs}, 1, 0.0), [b""] * 8, first, 8)
    return compared


@pytest.mark.parametrize("first", [0, 8])
def test_a_row_for_each_example_is_compared(candidate: Candidate, first: int) -> None:
    """What has no row for each is compared as a whole; what the export was not asked is passed over."""
    found = asked(candidate, first, y=rows(first, first + 8))
    assert (found.problem, found.numbers) == ("", 8 + 2)


@pytest.mark.parametrize("answered", [1, 7, 9, 24])
def test_fewer_or_more_rows_than_examples_are_a_difference(candidate: Candidate, answered: int) -> None:
    """Though each row that is there, or that was asked about, is right."""
    found = asked(candidate, 0, y=rows(0, answered))
    assert found.problem == f"output 'y': expected float32[8, 1], found float32[{answered}, 1]"


def test_a_fixed_output_is_compared_in_every_batch(candidate: Candidate) -> None:
    """Not in the first alone."""
    found = asked(candidate, 8, y=rows(8, 16), table=TABLE + 1)
    assert "output 'table'" in found.problem
