"""Program of the stage `smoke_test`: the served version, asked over gRPC as a client would ask it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from configs.schema.pipeline import DataConfig, SmokeTestConfig
from tasks.answers import golden_requests, offline_answers, rest_requests, served
from tasks.answers.served import Ask, Compared, ServerConditions
from tasks.core.artifacts import Candidate, Check, Endpoint, Run, SmokeTest
from tasks.core.errors import AnswersDiffer, SmokeTestFailed
from tasks.examples.tf_examples import read_records
from tasks.reports import pictures
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
    records = read_records([offline_answers.examples_file(candidate.offline)])
    timeout = smoke_test.request_timeout_seconds
    with ServingClient(endpoint.grpc, endpoint.model_name, timeout, endpoint.tls) as client:
        server = ServerConditions.of(endpoint, unknown_to_clients=False)
        checks: list[Check] = []
        compared = list(served.compared(client, candidate, records, data, server))
        for found in compared:
            checks += [_version_check(found, endpoint.version), *found.checks]
        as_asked = all(found.versions == {endpoint.version} and not found.broken for found in compared)
        _refuse_failed(checks, AnswersDiffer if as_asked else SmokeTestFailed)
        ask = served.default_api(client, candidate, data)
        milliseconds = latencies(ask, records, smoke_test.latency_requests)
        p50, p99 = (float(np.percentile(milliseconds, share)) for share in (50, 99))
        checks.append(latency_check(p99, smoke_test.latency_p99_limit_ms))
        _refuse_failed(checks)
        if smoke_test.watch_seconds:
            asked = [
                (Compared(api, signature, candidate, server), ask)
                for signature in candidate.signatures
                for api, ask in served.apis(client, signature, data)
            ]
            with _asking_golden(golden, client, endpoint, candidate, server) as golden_problem:
                seconds = smoke_test.watch_seconds
                checks.append(_watch(asked, golden_problem, records, endpoint.version, seconds, progress))
    _refuse_failed(checks)
    rest_requests.write_sample(run.folder, candidate.signatures, records[:1], data)
    limit = smoke_test.latency_p99_limit_ms
    marks = {"p50": p50, "p99": p99, **({} if limit is None else {"limit": limit})}
    numbers, answers = served.summary(compared)
    drawn = pictures.of_latencies(run, milliseconds, marks)
    return SmokeTest(tuple(checks), numbers, answers, p50, p99, drawn)


def _watch(
    asked: Sequence[tuple[Compared, Ask]], golden_problem: Callable[[int], str] | None,
    records: Sequence[bytes], version: int, watch_seconds: float,
    progress: Callable[[Mapping[str, Any]], None],
) -> Check:  # fmt: skip
    """Request answers about one sample after the other, in every signature and API, until the time is over.

    With golden requests, one of them after each.
    """
    rule = f"equals offline for {watch_seconds:g} s"
    began, rounds = time.monotonic(), 0
    while (seconds := time.monotonic() - began) < watch_seconds:
        problem = _sample_problem(asked, records, rounds % len(records), version)
        if golden_problem is not None:
            problem = problem or golden_problem(rounds)
        if problem:
            observed = problem.replace(": ", f" after {seconds:.1f} s: ", 1)
            return Check("watch", rule, observed, None, passed=False)
        rounds += 1
        progress({"message": f"watched for {seconds:.0f} s of {watch_seconds:g}"})
        time.sleep(_PAUSE_SECONDS)
    observed = f"{rounds} rounds of requests" + (", a golden one in each" if golden_problem else "")
    return Check("watch", rule, observed, None, passed=True)


def _sample_problem(
    asked: Sequence[tuple[Compared, Ask]], records: Sequence[bytes], index: int, version: int
) -> str:
    """Request answers about one sample in every signature and API; return what is wrong, if anything."""
    for found, ask in asked:
        if found.signature.row_independent:
            found.ask(ask, records[index : index + 1], index)
        else:
            found.ask(ask, records, 0)
        others = found.versions - {version}
        if found.problem or others:
            return f"{found.name}: {found.problem or f'version {others.pop()} answered'}"
    return ""


@contextmanager
def _asking_golden(
    golden: Golden | None, client: ServingClient, endpoint: Endpoint, candidate: Candidate,
    server: ServerConditions,
) -> Iterator[Callable[[int], str] | None]:  # fmt: skip
    """Yield a function that sends one golden request and returns what is wrong with the answer, if anything.

    None if there are no golden requests.
    """
    logs = golden_requests.read(golden["file"]) if golden else []
    if golden is None or not logs:
        yield None
        return
    with golden_requests.asking(logs, client, golden["model"], candidate.offline, server) as ask:

        def problem(asked: int) -> str:
            reply = ask(asked % len(logs))
            other = "" if reply.version == endpoint.version else f"version {reply.version} answered"
            wrong = reply.found.problem or other
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
    """Return the check of the p99 latency, in milliseconds, against its limit, if there is one."""
    passed = limit is None or p99 <= limit
    rule = "is reported" if limit is None else "at most the limit"
    return Check("latency p99 ms", rule, round(p99, 3), limit, passed)


def _refuse_failed(checks: Sequence[Check], error: type[SmokeTestFailed] = SmokeTestFailed) -> None:
    if problem := served.failed(checks):
        hint = "the new version is withdrawn; the one before answers again"
        raise error(problem, hint, tuple(checks))
