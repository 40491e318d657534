"""Program `latencies`: a candidate's beside those of the version that serves, each in a server of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.schema.pipeline import DataConfig, LatencyConfig, SmokeTestConfig
from tasks.answers import offline_answers, served
from tasks.answers.served import Ask
from tasks.core.artifacts import Candidate, Check, Endpoint, Latencies
from tasks.core.errors import SmokeTestFailed
from tasks.examples.tf_examples import read_records
from tasks.servers.serving_client import Answer, ServingClient

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
    """Ask both servers the same requests of one example, in turns; compare percentiles."""
    records = read_records([offline_answers.examples_file(candidate.offline)])
    timeout = smoke_test.request_timeout_seconds
    with (
        ServingClient(endpoint.grpc, endpoint.model_name, timeout, endpoint.tls) as client,
        ServingClient(baseline.grpc, baseline.model_name, timeout, baseline.tls) as other,
    ):
        asks = served.default_api(client, candidate, data), served.default_api(other, candidate, data)
        return compared(asks, records, limits, number)


def compared(
    asks: tuple[Ask, Ask], records: Sequence[bytes], limits: LatencyConfig, number: int
) -> Latencies:
    """Return rows of the candidate's percentiles beside those of the baseline, which is version `number`.

    A baseline that does not answer (its signatures were others, its server hiccups) is told, and rejects
    nothing; a candidate that does not is a row that fails.
    """
    asks = asks[0], _of_baseline(asks[1])
    wanted = {50: limits.p50_ratio, 99: limits.p99_ratio}
    try:
        asks[1](records[:1])
        in_turns(asks, records, _UNCOUNTED)
        ratios = lowest(lambda: in_turns(asks, records, limits.requests), wanted)
    except _BaselineSilent as silent:
        return Latencies.not_compared(f"version {number} does not answer its requests: {silent}")
    except SmokeTestFailed as error:
        rule = "answers every request while it is measured"
        return Latencies((Check("canary latency", rule, error.message, None, passed=False),))
    return Latencies(tuple(_checks(ratios, wanted, number)))


class _BaselineSilent(Exception):
    """It is the baseline that did not answer."""


def _of_baseline(ask: Ask) -> Ask:
    def asked(records: Sequence[bytes]) -> Answer:
        try:
            return ask(records)
        except SmokeTestFailed as error:
            raise _BaselineSilent(error.message) from None

    return asked


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
        served = f"{ratio.baseline:.3g} ms"  # with its unit: what stands beside it is a ratio
        yield Check(f"canary latency p{percentile}", rule, round(ratio.value, 3), limit, passed, served)
