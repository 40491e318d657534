"""Latencies of a candidate beside those of the version that serves: what is measured how often."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipelines import run_of, written

from configs.schema.pipeline import LatencyConfig
from tasks import canary
from tasks.answers.served import Ask
from tasks.core.artifacts import Canary, Check, Latencies
from tasks.core.errors import DeployFailed, Rejected, SmokeTestFailed
from tasks.in_tensorflow.latencies import compared, in_turns, lowest
from tasks.reports import junit
from tasks.servers.serving_client import Answer
from tasks.state.server_records import ServerRecord

SERVER = ServerRecord("small", "process", "model_server", "id", "/models", (), 1, 2, handle="7:1.0")
LIMITS = LatencyConfig(p50_ratio=1.5, requests=20)


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


def test_a_row_has_the_time_of_what_serves() -> None:
    """With its unit, beside a ratio that has none; in JUnit too."""
    asks = _asker(0.002), _asker(0.0014142)
    median, slow = compared(asks, [b"a"], LIMITS, 7).checks
    assert (median.name, median.observed, median.baseline) == ("canary latency p50", 1.414, "1.41 ms")
    assert median.rule == "times that of version 7 (2 ms to 1.41 ms)"
    assert (slow.name, slow.limit, slow.baseline) == ("canary latency p99", None, "1.41 ms")
    assert "observed 1.414, limit 1.5, served now 1.41 ms" in junit._check(median)[0].text  # type: ignore[operator]


def _asker(seconds: float, fails_at: int | None = None) -> Ask:
    """Answer in so many seconds, but for one request."""
    requests = itertools.count(1)

    def ask(records: object) -> Answer:
        if next(requests) == fails_at:
            raise SmokeTestFailed("Predict of small: UNAVAILABLE: Socket closed")
        return Answer({}, 1, seconds)

    return ask


@pytest.mark.parametrize("request_that_fails", [1, 5, 20])
def test_an_error_of_the_candidate_is_a_row_that_fails(request_that_fails: int) -> None:
    """Before the first that counts, or later: it is a bad candidate, no bad night."""
    (row,) = compared((_asker(1, request_that_fails), _asker(1)), [b"a"], LIMITS, 7).checks
    assert (row.name, row.rule) == ("canary latency", "answers every request while it is measured")
    assert (row.observed, row.passed) == ("Predict of small: UNAVAILABLE: Socket closed", False)


@pytest.mark.parametrize("request_that_fails", [1, 5, 20])
def test_an_error_of_the_baseline_rejects_nothing(request_that_fails: int) -> None:
    """The candidate did nothing wrong; the row says why there is no ratio."""
    (row,) = compared((_asker(1), _asker(1, request_that_fails)), [b"a"], LIMITS, 7).checks
    why = "version 7 does not answer its requests: Predict of small: UNAVAILABLE: Socket closed"
    assert (row.name, row.observed, row.passed) == ("canary latency", f"not compared: {why}", True)


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


class TestTheStage:
    """What the stage `canary` makes of it; the servers are not there."""

    @pytest.fixture
    def measured(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
        """Measure beside version 7, whose server comes up as `started` says, to find `found`."""
        pipeline = written(tmp_path / "small", {"deployment": {"canary": {"latency": {"p50_ratio": 1.5}}}})
        config, proof = pipeline.config, Canary((canary._survival(alive=True),))
        candidate: Any = None
        monkeypatch.setattr(canary.served_versions, "served", lambda _: (7, tmp_path))
        monkeypatch.setattr(canary.model_versions, "lent_to_canary", lambda *_: nullcontext(tmp_path))
        monkeypatch.setattr(canary.model_versions, "lend", lambda *_: None)
        monkeypatch.setattr(canary.model_servers, "wait_until_live", lambda *_: None)

        def measure(started: Any = lambda *_: nullcontext(SERVER), found: Latencies | None = None) -> Canary:
            monkeypatch.setattr(canary.temporary_servers, "started", started)
            monkeypatch.setattr(canary.tensorflow_process, "run", lambda *_, **__: found)
            asked = SERVER, config.deployment, config.smoke_test, config.data, candidate
            return canary._no_slower(proof, *asked, run_of(pipeline, tmp_path))

        return measure

    def test_a_server_of_the_baseline_that_does_not_start_rejects_nothing(self, measured: Any) -> None:
        """The engine had a bad moment, or there is no memory for two."""

        @contextmanager
        def started(*_: object) -> Iterator[ServerRecord]:
            raise DeployFailed("the engine does not start a container: no memory")
            yield SERVER

        row = measured(started).checks[-1]
        assert row.passed
        assert row.observed == "not compared: version 7: the engine does not start a container: no memory"

    @pytest.mark.parametrize("alive", [True, False])
    def test_a_candidate_that_does_not_answer_is_rejected(
        self, measured: Any, monkeypatch: pytest.MonkeyPatch, alive: bool
    ) -> None:
        """And it is told whether its server lives, in one row; if not, with the server's log."""
        monkeypatch.setattr(canary, "_LAST_BREATH_SECONDS", 0.0)
        monkeypatch.setattr(canary.model_servers, "is_alive", lambda _: alive)
        monkeypatch.setattr(canary.model_servers, "failed", lambda _, problem, log: DeployFailed(problem))
        missed = Check("canary latency", "answers every request", "UNAVAILABLE", None, passed=False)
        with pytest.raises(Rejected, match="UNAVAILABLE") as rejected:
            measured(found=Latencies((missed,)))
        assert rejected.value.checks == (missed, canary._survival(alive=alive))
        assert rejected.value.message.startswith("died of what it was asked: ") is not alive
