"""Program of the stage `smoke_test`: the served version, asked over gRPC as a client would ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.schema import DataConfig, SmokeTestConfig
from tasks import comparison, offline_answers, rest_requests
from tasks.artifacts import Candidate, Check, Endpoint, Run, Signature, SmokeTest
from tasks.errors import SmokeTestFailed
from tasks.request_inputs import request_inputs
from tasks.serving_client import Answer, ServingClient
from tasks.tf_examples import read_records

Ask = Callable[[Sequence[bytes]], Answer]


def run(
    _progress: Callable[[Mapping[str, Any]], None],
    endpoint: Endpoint, candidate: Candidate, smoke_test: SmokeTestConfig, data: DataConfig, run: Run,
) -> SmokeTest:  # fmt: skip
    """Ask every signature by every API that it has; compare every number with the offline one.

    Leaves `rest_request.json` in the run's folder: a request body that anyone can paste. Raises
    SmokeTestFailed, with all checks.
    """
    records = read_records([offline_answers.examples_file(candidate.offline)], limit=smoke_test.samples)
    with ServingClient(endpoint.grpc, endpoint.model_name, smoke_test.request_timeout_seconds) as client:
        checks: list[Check] = []
        numbers = 0
        for signature in candidate.signatures:
            expected = offline_answers.read(candidate.offline, signature.name)
            for api, ask in apis(client, signature, data):
                found = _compared(f"{api} {signature.name}", ask, records, expected, smoke_test)
                checks += [_version_check(api, signature, found.versions, endpoint.version), found.check]
                numbers += found.numbers
        milliseconds = _latencies(client, candidate, data, records, smoke_test.latency_requests)
    p50, p99 = (float(np.percentile(milliseconds, share)) for share in (50, 99))
    checks.append(_latency_check(p99, smoke_test.latency_p99_limit_ms))
    _refuse_failed(checks)
    rest_requests.write_sample(run.folder, candidate.signatures, records[:1], data)
    return SmokeTest(tuple(checks), numbers, p50, p99)


def apis(client: ServingClient, signature: Signature, data: DataConfig) -> Iterator[tuple[str, Ask]]:
    """Yield each API that the signature has, and how it is asked about serialized tf.Examples."""
    yield (
        "Predict",
        lambda records: client.predict(signature.name, request_inputs(signature, records, data.features)),
    )
    if signature.receiver == "raw":
        return
    if signature.method == "classify":
        yield "Classify", lambda records: client.classify(signature.name, records)
    if signature.method == "regress":
        yield "Regress", lambda records: client.regress(signature.name, records)


class _Compared:
    """What one API of one signature answered, all at once and one by one."""

    def __init__(self, name: str) -> None:
        self.name, self.numbers, self.largest, self.problem = name, 0, 0, ""
        self.versions: set[int] = set()
        self.most = 0

    @property
    def check(self) -> Check:
        rule = "equals offline" + (f" within {self.most} ULPs" if self.most else "")
        observed = self.problem or f"{self.numbers} numbers, {self.largest} ULPs at most"
        return Check(self.name, rule, observed, self.most, not self.problem)

    def take(self, answer: Answer, expected: Mapping[str, NDArray[Any]], first: int) -> None:
        self.versions.add(answer.version)
        # Of a head without classes (or scores) Classify answers empty ones: there is nothing to compare.
        for alias, offline in expected.items():
            served = answer.outputs.get(alias)
            if served is None:
                self.problem = self.problem or f"{alias} is not answered"
                continue
            wanted = offline[first : first + len(served)]
            # Regress answers [n] for outputs of [n, 1] (tf_serving.md, 1.5).
            reshaped = served.reshape(wanted.shape) if served.size == wanted.size else served
            found = comparison.compare(wanted, reshaped, self.most)
            self.numbers += found.numbers
            self.largest = max(self.largest, found.largest_ulps)
            if not found.equal and not self.problem:
                example = first + (found.example or 0)
                self.problem = f"{alias} of example {example}: {found.difference}"


def _compared(
    name: str, ask: Ask, records: Sequence[bytes],
    expected: Mapping[str, NDArray[Any]], smoke_test: SmokeTestConfig,
) -> _Compared:  # fmt: skip
    found = _Compared(name)
    found.most = comparison.limit(smoke_test.tolerance)
    found.take(ask(records), expected, 0)
    for index in range(min(len(records), 8)):
        found.take(ask(records[index : index + 1]), expected, index)
    return found


def _version_check(api: str, signature: Signature, versions: set[int], wanted: int) -> Check:
    observed = ", ".join(map(str, sorted(versions)))
    return Check(f"{api} {signature.name} version", "is the new one", observed, wanted, versions == {wanted})


def _latencies(
    client: ServingClient, candidate: Candidate, data: DataConfig, records: Sequence[bytes], requests: int
) -> list[float]:
    """Return the milliseconds of so many requests of one example, one after the other."""
    default = next(
        (signature for signature in candidate.signatures if signature.name == "serving_default"),
        candidate.signatures[0],
    )
    *_, (_, ask) = apis(client, default, data)
    return [
        ask(records[index % len(records) : index % len(records) + 1]).seconds * 1000
        for index in range(requests)
    ]


def _latency_check(p99: float, limit: float | None) -> Check:
    passed = limit is None or p99 <= limit
    rule = "is reported" if limit is None else "at most the limit"
    return Check("latency p99 ms", rule, round(p99, 3), limit, passed)


def _refuse_failed(checks: Sequence[Check]) -> None:
    failed = [check for check in checks if not check.passed]
    if failed:
        first, more = failed[0], len(failed) - 1
        also = f" (and {more} more checks failed)" if more else ""
        raise SmokeTestFailed(
            f"{first.name} {first.rule}: observed {first.observed}, limit {first.limit}{also}",
            "the new version is withdrawn; the one before answers again",
            tuple(checks),
        )
