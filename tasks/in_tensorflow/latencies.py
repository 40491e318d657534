"""Program `latencies`: a candidate's beside those of the version that serves, each in a server of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.schema import DataConfig, LatencyConfig, SmokeTestConfig
from tasks.answers import offline_answers, served
from tasks.answers.served import Ask
from tasks.artifacts import Candidate, Check, Endpoint, Latencies
from tasks.errors import SmokeTestFailed
from tasks.examples.tf_examples import read_records
from tasks.servers.serving_client import ServingClient

_ATTEMPTS = 3
_UNCOUNTED = 10
"""Requests to each server before the first that counts: connections are made, memory is touched."""


@dataclass(frozen=True)
class Ratio:
    """A percentile of the candidate's milliseconds, in parts of the baseline's."""

    candidate: float
    baseline: float

    @property
    def value(self) -> float:
        """How many times the baseline's it is."""
        return self.candidate / self.baseline


def run(
    _progress: Callable[[Mapping[str, Any]], None],
    endpoint: Endpoint, baseline: Endpoint, number: int, candidate: Candidate, limits: LatencyConfig,
    smoke_test: SmokeTestConfig, data: DataConfig,
) -> Latencies:  # fmt: skip
    """Ask both servers the same requests of one example, in turns; compare percentiles.

    A baseline that does not take them (its signatures were others) is told, and rejects nothing.
    """
    records = read_records([offline_answers.examples_file(candidate.offline)], limit=smoke_test.samples)
    timeout = smoke_test.request_timeout_seconds
    with (
        ServingClient(endpoint.grpc, endpoint.model_name, timeout, endpoint.tls) as client,
        ServingClient(baseline.grpc, baseline.model_name, timeout, baseline.tls) as other,
    ):
        asks = served.default_api(client, candidate, data), served.default_api(other, candidate, data)
        try:
            asks[1](records[:1])
        except SmokeTestFailed as error:
            why = f"version {number} does not take its requests: {error.message}"
            check = Check("canary latency", "is compared with what serves", why, None, passed=True)
            return Latencies((check,))
        in_turns(asks, records, _UNCOUNTED)
        wanted = {50: limits.p50_ratio, 99: limits.p99_ratio}
        ratios = lowest(lambda: in_turns(asks, records, limits.requests), wanted)
    return Latencies(tuple(_checks(ratios, wanted, number)))


def in_turns(
    asks: tuple[Ask, Ask], records: Sequence[bytes], requests: int
) -> tuple[list[float], list[float]]:
    """Return the milliseconds of so many requests to each, one to one; who is first changes each time."""
    milliseconds: tuple[list[float], list[float]] = ([], [])
    for index in range(requests):
        record = records[index % len(records) : index % len(records) + 1]
        for which in (0, 1) if index % 2 else (1, 0):
            milliseconds[which].append(asks[which](record).seconds * 1000)
    return milliseconds


def lowest(
    measure: Callable[[], tuple[list[float], list[float]]], wanted: Mapping[int, float | None]
) -> dict[int, Ratio]:
    """Return the lowest ratio of each percentile; measured again only while one is beyond its limit."""
    found: dict[int, Ratio] = {}
    for _ in range(_ATTEMPTS):
        candidate, baseline = measure()
        for percentile in wanted:
            ratio = Ratio(*(float(np.percentile(each, percentile)) for each in (candidate, baseline)))
            if percentile not in found or ratio.value < found[percentile].value:
                found[percentile] = ratio
        if all(limit is None or found[percentile].value <= limit for percentile, limit in wanted.items()):
            break
    return found


def _checks(ratios: Mapping[int, Ratio], wanted: Mapping[int, float | None], number: int) -> Iterator[Check]:
    for percentile, limit in wanted.items():
        ratio = ratios[percentile]
        rule = f"times that of version {number} ({ratio.candidate:.3g} ms to {ratio.baseline:.3g} ms)"
        passed = limit is None or ratio.value <= limit
        yield Check(f"canary latency p{percentile}", rule, round(ratio.value, 3), limit, passed)
