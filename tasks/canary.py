"""Stage 6, canary: the candidate answers in a server that no client knows, before anything is published."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

from configs.schema.pipeline import DataConfig, DeploymentConfig, GoldenConfig, SmokeTestConfig
from tasks.core.artifacts import Canary, Candidate, Check, Endpoint, Latencies, Run, ServingTarget
from tasks.core.errors import DeployFailed, Rejected
from tasks.deploys import rollouts, temporary_servers
from tasks.processes import tensorflow_process
from tasks.runs.stages import report, stage
from tasks.servers import model_servers, served_versions, server_process
from tasks.servers.model_servers import Deadline
from tasks.state import model_versions, server_records
from tasks.state.server_records import ServerRecord

_NUMBER = 1
"""Version that the candidate is in its own server."""
_STAMPED = 2
"""And with the golden requests as its warmup."""
_WARMUP = Path("assets.extra", "tf_serving_warmup_requests")
_LOG = "canary-server"
_SURVIVES = "canary server"
_LAST_BREATH_SECONDS = 1.0


@stage("canary", run_name="canary: query the candidate of {run.pipeline}", resumable=True)
def canary(
    deployment: DeploymentConfig, smoke_test: SmokeTestConfig, data: DataConfig,
    candidate: Candidate, target: ServingTarget, golden: GoldenConfig, run: Run,
) -> Canary:  # fmt: skip
    """Prove that the candidate loads and answers in a server as it will be served in, which is then stopped.

    Same program, same flags, loopback ports and a base path of its own. Raises Rejected, with all checks,
    where it does not load, answers otherwise than offline, the server does not survive it, or it is too
    slow beside the version that serves.
    """
    if not deployment.canary:
        return Canary(skipped="left out (deployment.canary: false): it is first asked when it is published")
    if not candidate.path.is_dir():  # by a run that this one goes on with
        return Canary(skipped="the candidate is published already")
    deadline = Deadline.after(deployment.load_timeout_seconds)
    with model_versions.lent_to_canary(run.model_base_path, run.run_id) as base:
        model_versions.lend(candidate.path, base, _NUMBER)
        with temporary_servers.started(_planned(target, base, run), "canary") as server:
            _see_it_load(server, deadline, run)
            recorded = golden.recorded(run.source)
            proof = _asked(server, candidate, smoke_test, data, recorded, run)
            proof = _with_missing(proof, golden.missing(run.source))
            if recorded is not None:
                proof = _warmed_up(proof, recorded, candidate, server, deployment.load_timeout_seconds, run)
            if deployment.latency_of_canary is None:
                return proof
            return _no_slower(proof, server, deployment, smoke_test, data, candidate, run)


def _planned(target: ServingTarget, base: Path, run: Run) -> ServerRecord:
    """Return the server as it will be served in; for one that somebody else runs, our own as a process."""
    planned = replace(model_servers.planned(target, run), model_base_path=str(base))
    if target.kind != "external":
        return planned
    ours = server_process.OWN_PROGRAM
    return replace(planned, target="process", program=ours, host=server_records.LOOPBACK, flags=())


def _see_it_load(server: ServerRecord, deadline: Deadline, run: Run) -> None:
    try:
        model_servers.wait_until_live(server, _NUMBER, deadline, run.log(_LOG))
    except DeployFailed as error:
        check = Check("canary load", "is AVAILABLE in a server of its own", error.message, None, passed=False)
        message = f"the candidate is not served in a server of its own: {error.message}"
        raise Rejected(message, error.hint, (check,)) from None


def _endpoint(server: ServerRecord) -> Endpoint:
    return rollouts.endpoint(server, _NUMBER, started=True)


def _asked(
    server: ServerRecord, candidate: Candidate, smoke_test: SmokeTestConfig, data: DataConfig,
    golden: Path | None, run: Run,
) -> Canary:  # fmt: skip
    try:
        proof = tensorflow_process.run(
            "canary", Canary, log=run.log("canary"), on_progress=report, ops_of=run,
            arguments={
                "endpoint": _endpoint(server),
                "candidate": candidate, "smoke_test": smoke_test, "data": data, "golden": golden,
            },
        )  # fmt: skip
    except Rejected as error:
        raise _explained(error, server, run) from None
    if not model_servers.is_alive(server):
        raise _explained(Rejected("after its last answer", "", proof.checks), server, run)
    return replace(proof, checks=(*proof.checks, _survival(alive=True)))


def _with_missing(proof: Canary, golden: Path | None) -> Canary:
    """Report that the configured golden requests were not replayed: that gate was not checked."""
    if golden is None:
        return proof
    told = f"none are recorded in {golden}"
    row = Check("canary golden requests", "are answered as by the export", told, None, passed=True)
    return replace(proof, checks=(*proof.checks, row))


def _explained(error: Rejected, server: ServerRecord, run: Run) -> Rejected:
    """Return the error with whether the server survived; if not, with the last lines of its log."""
    seen = tuple(check for check in error.checks if check.name != _SURVIVES)
    if not _dies(server):
        return Rejected(error.message, error.hint, (*seen, _survival(alive=True)))
    died = model_servers.failed(server, f"died of what it was asked: {error.message}", run.log(_LOG))
    return Rejected(died.message, died.hint, (*seen, _survival(alive=False)))


def _dies(server: ServerRecord) -> bool:
    """Return whether the server has ended or is about to; a client may notice before the process table."""
    ends = time.monotonic() + _LAST_BREATH_SECONDS
    while model_servers.is_alive(server):
        if time.monotonic() >= ends:
            return False
        time.sleep(_LAST_BREATH_SECONDS / 10)
    return True


def _warmed_up(
    proof: Canary, golden: Path, candidate: Candidate, server: ServerRecord, seconds: float, run: Run
) -> Canary:
    """Write the golden requests as the candidate's warmup file, and check that the server loads with it.

    A warmup file of the user's own (export.assets_extra) stays.
    """
    warmup = candidate.path / _WARMUP
    name, rule = "canary warmup", "loads again with the golden requests as its warmup"
    if warmup.is_file() and warmup.read_bytes() != golden.read_bytes():
        own = Check(name, rule, "it has a warmup file of its own: export.assets_extra", None, passed=True)
        return replace(proof, checks=(*proof.checks, own))
    with model_versions.faults_named(run.model_base_path):
        warmup.parent.mkdir(exist_ok=True)
        shutil.copyfile(golden, warmup)
    model_versions.lend(candidate.path, Path(server.model_base_path), _STAMPED)
    try:
        model_servers.wait_until_live(server, _STAMPED, Deadline.after(seconds), run.log(_LOG))
    except DeployFailed as error:
        missed = Check(name, rule, error.message, None, passed=False)
        raise Rejected(f"{name}: {error.message}", error.hint, (*proof.checks, missed)) from None
    return replace(proof, checks=(*proof.checks, Check(name, rule, "it does", None, passed=True)))


def _no_slower(
    proof: Canary, asked: ServerRecord, deployment: DeploymentConfig, smoke_test: SmokeTestConfig,
    data: DataConfig, candidate: Candidate, run: Run,
) -> Canary:  # fmt: skip
    """Compare the candidate's latencies with those of the version that serves, in a server like its own.

    Where there is none, or its server is no good, that is told, and rejects nothing.
    """
    before = served_versions.served(run)
    if before is None:
        return _with_latencies(proof, Latencies.not_compared("nothing is served to compare it with"))
    with model_versions.lent_to_canary(run.model_base_path, f"{run.run_id}-baseline") as base:
        number, folder = before
        model_versions.lend(folder, base, _NUMBER)
        deadline = Deadline.after(deployment.load_timeout_seconds)
        try:
            with temporary_servers.started(replace(asked, model_base_path=str(base)), "baseline") as server:
                model_servers.wait_until_live(server, _NUMBER, deadline, run.log("baseline-server"))
                found = tensorflow_process.run(
                    "latencies", Latencies, log=run.log("latencies"), on_progress=report,
                    arguments={
                        "endpoint": _endpoint(asked), "baseline": _endpoint(server), "number": number,
                        "candidate": candidate, "limits": deployment.latency_of_canary,
                        "smoke_test": smoke_test, "data": data,
                    },
                )  # fmt: skip
        except DeployFailed as error:
            found = Latencies.not_compared(f"version {number}: {error.message}")
    try:
        return _with_latencies(proof, found)
    except Rejected as error:
        raise _explained(error, asked, run) from None


def _with_latencies(proof: Canary, found: Latencies) -> Canary:
    """Raise Rejected where a limit is missed, or a request was not answered."""
    told = replace(proof, checks=(*proof.checks, *found.checks))
    for check in found.checks:
        if not check.passed:
            message = f"{check.name} {check.rule}: observed {check.observed}, limit {check.limit}"
            raise Rejected(message, "nothing was published", told.checks)
    return told


def _survival(*, alive: bool) -> Check:
    return Check(_SURVIVES, "still runs", "it runs" if alive else "it died", None, alive)
