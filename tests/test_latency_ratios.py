"""Latencies of a candidate beside those of the version that serves: what is measured how often."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tasks.answers.served import Ask
from tasks.in_tensorflow.latencies import in_turns, lowest
from tasks.servers.serving_client import Answer


def _measured(*ratios: float) -> Iterator[tuple[list[float], list[float]]]:
    return ((np.linspace(ratio, 2 * ratio, 50).tolist(), np.linspace(1, 2, 50).tolist()) for ratio in ratios)


def test_within_its_limits_it_is_measured_once() -> None:
    """A percentile without a limit is told all the same."""
    attempts = _measured(1.5, 1.0)
    found = lowest(lambda: next(attempts), {50: 1.6, 99: None})
    assert {percentile: round(ratio.value, 6) for percentile, ratio in found.items()} == {50: 1.5, 99: 1.5}
    assert len(list(attempts)) == 1


def test_beyond_one_it_is_measured_again_and_the_lowest_counts() -> None:
    """A busy moment rejects nothing."""
    attempts = _measured(3.0, 1.2, 9.0)
    assert round(lowest(lambda: next(attempts), {50: 1.5, 99: 1.5})[99].value, 6) == 1.2
    assert len(list(attempts)) == 1


def test_one_that_always_is_slow_stays_beyond_it() -> None:
    """After the third attempt nothing is measured any more."""
    attempts = _measured(3.0, 2.0, 4.0, 1.0)
    assert round(lowest(lambda: next(attempts), {50: 1.5, 99: None})[50].value, 6) == 2.0
    assert len(list(attempts)) == 1


def test_both_are_asked_the_same_in_turns() -> None:
    """Neither is always the first."""
    asked: list[tuple[str, bytes]] = []

    def asker(name: str, seconds: float) -> Ask:
        def ask(records: object) -> Answer:
            assert isinstance(records, list)
            asked.append((name, records[0]))
            return Answer({}, 1, seconds)

        return ask

    found = in_turns((asker("new", 0.002), asker("old", 0.001)), [b"a", b"b"], 3)
    assert found == ([2.0] * 3, [1.0] * 3)
    assert asked == [("old", b"a"), ("new", b"a"), ("new", b"b"), ("old", b"b"), ("old", b"a"), ("new", b"a")]
