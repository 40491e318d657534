"""Whether a served version answers as it should: the question of every deploy, rollback and recovery."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from configs.schema.pipeline import DataConfig, SmokeTestConfig
from tasks.answers import kept_answers, offline_answers
from tasks.answers.kept_answers import Kept
from tasks.core.artifacts import Candidate, Endpoint, Probe, Run, SmokeTest
from tasks.processes import tensorflow_process
from tasks.processes.tensorflow_process import Progress, ignore_progress
from tasks.state import model_versions

_FEWEST_LATENCY_REQUESTS = 20


def prove(
    endpoint: Endpoint, candidate: Candidate, smoke_test: SmokeTestConfig, data: DataConfig, run: Run,
    on_progress: Progress = ignore_progress, log: str = "smoke-test", golden: Path | None = None,
) -> SmokeTest:  # fmt: skip
    """Ask the endpoint in every signature and API; every number is the offline one, by that version.

    The requests in the file `golden` are asked too for as long as it is watched.

    Raises SmokeTestFailed, with all checks.
    """
    return tensorflow_process.run(
        "smoke_test",
        SmokeTest,
        log=run.log(log),
        on_progress=on_progress,
        arguments={
            "endpoint": endpoint,
            "candidate": candidate,
            "smoke_test": smoke_test,
            "data": data,
            "run": run,
            "golden": golden and {"file": golden, "model": _folder(endpoint, run)},
        },
    )


def _folder(endpoint: Endpoint, run: Run) -> Path:
    return model_versions.versions(run.model_base_path)[endpoint.version]


def prove_again(endpoint: Endpoint, smoke_test: SmokeTestConfig, run: Run, log: str) -> str:
    """Compare a published version's answers with those that it keeps; return what was found, a sentence.

    A version that keeps none (of another release, or published by hand) is asked about another one's
    examples, and has to answer. Raises SmokeTestFailed.
    """
    folder = _folder(endpoint, run)
    kept = kept_answers.of_version(folder)
    if kept is not None:
        proof = prove(endpoint, kept.candidate, _without_latency(smoke_test), kept.data, run, log=log)
        return f"its answers are those it was deployed with ({proof.answers})"
    other = next(_kept(run.model_base_path), None)
    if other is None:
        return "it is AVAILABLE; no examples are kept to ask it about"
    _ask(endpoint, other, smoke_test, run, log)
    return "it answers; what it should answer is not kept with it"


def _without_latency(smoke_test: SmokeTestConfig) -> SmokeTestConfig:
    """Return the smoke test without latency limit and watch time: they are for new versions."""
    brief = {"latency_requests": _FEWEST_LATENCY_REQUESTS, "latency_p99_limit_ms": None, "watch_seconds": 0}
    return smoke_test.model_copy(update=brief)


def _kept(base: Path) -> Iterator[Kept]:
    found = {**model_versions.withdrawn(base), **model_versions.versions(base)}
    for number in sorted(found, reverse=True):
        kept = kept_answers.of_version(found[number])
        if kept is not None:
            yield kept


def _ask(endpoint: Endpoint, other: Kept, smoke_test: SmokeTestConfig, run: Run, log: str) -> None:
    tensorflow_process.run(
        "probe",
        Probe,
        log=run.log(log),
        arguments={
            "grpc": endpoint.grpc,
            "tls": endpoint.tls,
            "model_name": endpoint.model_name,
            "version": endpoint.version,
            "examples": offline_answers.examples_file(other.candidate.offline),
            "data": other.data,
            "count": 3,
            "timeout_seconds": smoke_test.request_timeout_seconds,
        },
    )
