"""Program of the stage `smoke_test`: the served version, asked over gRPC as a client would ask it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from configs.schema import DataConfig, SmokeTestConfig
from tasks.answers import comparison, golden_requests, offline_answers, served
from tasks.answers.comparison import Tally
from tasks.answers.served import Ask, Compared
from tasks.artifacts import Candidate, Check, Endpoint, Run, SmokeTest
from tasks.errors import SmokeTestFailed
from tasks.examples.tf_examples import read_records
from tasks.reports import pictures
from tasks.servers import rest_requests
from tasks.servers.serving_client import ServingClient

_PAUSE_SECONDS = 0.05


class Golden(TypedDict):
    """Golden requests, and the SavedModel that says what they are to be answered."""

    file: Path
    model: Path


"""Between two rounds of a watch: a few requests, not a load test."""


def run(
    progress: Callable[[Mapping[str, Any]], None],
    endpoint: Endpoint, candidate: Candidate, smoke_test: SmokeTestConfig, data: DataConfig, run: Run,
    golden: Golden | None = None,
) -> SmokeTest:  # fmt: skip
    """Ask every signature by every API that it has; compare every number with the offline one.

    Then go on asking for `watch_seconds`.

    Leaves `rest_request.json` in the run's folder: a request body that anyone can paste. Raises
    SmokeTestFailed, with all checks.
    """
    records = read_records([offline_answers.examples_file(candidate.offline)], limit=smoke_test.samples)
    timeout = smoke_test.request_timeout_seconds
    with ServingClient(endpoint.grpc, endpoint.model_name, timeout, endpoint.tls) as client:
        checks: list[Check] = []
        numbers = 0
        for found in served.compared(client, candidate, records, data, smoke_test.tolerance):
            checks += [_version_check(found, endpoint.version), *found.checks]
            numbers += found.numbers
        _refuse_failed(checks)
        ask = served.default_api(client, candidate, data)
        milliseconds = latencies(ask, records, smoke_test.latency_requests)
        p50, p99 = (float(np.percentile(milliseconds, share)) for share in (50, 99))
        checks.append(latency_check(p99, smoke_test.latency_p99_limit_ms))
        _refuse_failed(checks)
        if smoke_test.watch_seconds:
            checks.append(_watch(client, records, endpoint, candidate, smoke_test, data, golden, progress))
    _refuse_failed(checks)
    rest_requests.write_sample(run.folder, candidate.signatures, records[:1], data)
    limit = smoke_test.latency_p99_limit_ms
    marks = {"p50": p50, "p99": p99, **({} if limit is None else {"limit": limit})}
    return SmokeTest(tuple(checks), numbers, p50, p99, pictures.of_latencies(run, milliseconds, marks))


def _watch(
    client: ServingClient, records: Sequence[bytes], endpoint: Endpoint, candidate: Candidate,
    smoke_test: SmokeTestConfig, data: DataConfig, golden: Golden | None,
    progress: Callable[[Mapping[str, Any]], None],
) -> Check:  # fmt: skip
    """Ask about one example after the other, in every signature and API, until the time is over.

    With golden requests, one of them after each.
    """
    rule = f"equals offline for {smoke_test.watch_seconds:g} s"
    began, asked = time.monotonic(), 0
    with _asking_golden(golden, client, endpoint, smoke_test) as golden_problem:
        while (seconds := time.monotonic() - began) < smoke_test.watch_seconds:
            problem = _sample_problem(client, records, asked, endpoint, candidate, smoke_test, data)
            if problem := problem or golden_problem(asked):
                observed = problem.replace(": ", f" after {seconds:.1f} s: ", 1)
                return Check("watch", rule, observed, None, passed=False)
            asked += 1
            progress({"message": f"watched for {seconds:.0f} s of {smoke_test.watch_seconds:g}"})
            time.sleep(_PAUSE_SECONDS)
    observed = f"{asked} rounds of requests" + (", a golden one in each" if golden else "")
    return Check("watch", rule, observed, None, passed=True)


def _sample_problem(
    client: ServingClient, records: Sequence[bytes], asked: int, endpoint: Endpoint, candidate: Candidate,
    smoke_test: SmokeTestConfig, data: DataConfig,
) -> str:  # fmt: skip
    """Ask about one example in every signature and API; say what is wrong, "" where nothing is."""
    index = asked % len(records)
    for signature in candidate.signatures:
        for api, ask in served.apis(client, signature, data):
            found = Compared(api, signature, candidate, smoke_test.tolerance)
            found.ask(ask, records[index : index + 1], index)
            if found.problem or found.versions != {endpoint.version}:
                return f"{found.name}: {found.problem or f'version {found.versions.pop()} answered'}"
    return ""


@contextmanager
def _asking_golden(
    golden: Golden | None, client: ServingClient, endpoint: Endpoint, smoke_test: SmokeTestConfig
) -> Iterator[Callable[[int], str]]:
    """Have what asks one golden request and says what is wrong with its answer, "" where nothing is."""
    logs = golden_requests.read(golden["file"]) if golden else []
    if golden is None or not logs:
        yield lambda _: ""
        return
    with golden_requests.asking(logs, client, golden["model"]) as ask:

        def problem(asked: int) -> str:
            tally = Tally(comparison.limit(smoke_test.tolerance))
            version = ask(asked % len(logs), tally)
            wrong = tally.problem or (f"version {version} answered" if version != endpoint.version else "")
            return wrong and f"golden requests: {wrong}"

        yield problem


def _version_check(found: Compared, wanted: int) -> Check:
    observed = ", ".join(map(str, sorted(found.versions))) or "no answer"
    return Check(f"{found.name} version", "is the new one", observed, wanted, found.versions == {wanted})


def latencies(ask: Ask, records: Sequence[bytes], requests: int) -> list[float]:
    """Return the milliseconds of so many requests of one example, one after the other."""
    return [
        ask(records[index % len(records) : index % len(records) + 1]).seconds * 1000
        for index in range(requests)
    ]


def latency_check(p99: float, limit: float | None) -> Check:
    """Say whether the p99, in milliseconds, is within the limit, if there is one."""
    passed = limit is None or p99 <= limit
    rule = "is reported" if limit is None else "at most the limit"
    return Check("latency p99 ms", rule, round(p99, 3), limit, passed)


def _refuse_failed(checks: Sequence[Check]) -> None:
    if problem := served.failed(checks):
        hint = "the new version is withdrawn; the one before answers again"
        raise SmokeTestFailed(problem, hint, tuple(checks))
