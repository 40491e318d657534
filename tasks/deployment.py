"""Stage 7, deploy: the new version is what the server answers with; and its undoing, withdraw."""

from __future__ import annotations

from configs.schema import DataConfig, DeploymentConfig, ServerConfig
from tasks import model_servers, model_versions, server_container, server_records, tensorflow_process
from tasks.artifacts import Candidate, Endpoint, ModelVersion, Probe, Run, ServingTarget, Withdrawal
from tasks.errors import DeployFailed
from tasks.model_servers import Deadline
from tasks.server_records import ServerRecord
from tasks.stages import stage


@stage("deploy", run_name="deploy version {version.number} of {run.pipeline} ({target.kind})")
def deploy(
    version: ModelVersion,
    target: ServingTarget,
    deployment: DeploymentConfig,
    server: ServerConfig,
    run: Run,
) -> Endpoint:
    """Have the version answered with, by the running server or by a new one.

    A running server whose program, flags or ports changed is drained and replaced; `withdraw` starts
    the old one again. Raises DeployFailed with the server's last log lines.
    """
    deadline, log = Deadline.after(deployment.load_timeout_seconds), run.log("server")
    running = model_servers.running(run.pipeline)
    if running is not None and _is_as_wanted(running, target):
        model_servers.wait_until_live(running, version.number, deadline, log)
        return _endpoint(running, version.number, started=False)
    if running is not None:
        server_records.set_aside(running)
        model_servers.stop(running)
    record = model_servers.start(model_servers.planned(target, server, run))
    model_servers.wait_until_live(record, version.number, deadline, log)
    if record.target == "docker":
        server_container.keep_running(record.handle)
    return _endpoint(record, version.number, started=True)


def _is_as_wanted(record: ServerRecord, target: ServingTarget) -> bool:
    wanted = (target.identity, target.grpc_port, target.rest_port)
    return (record.identity, record.grpc_port, record.rest_port) == wanted


def _endpoint(record: ServerRecord, version: int, started: bool) -> Endpoint:
    return Endpoint(
        model_name=record.model_name,
        version=version,
        grpc=record.grpc,
        rest=record.rest,
        target=record.target,
        server=record.describe(),
        started=started,
    )


@stage("withdraw", run_name="withdraw version {version.number} of {run.pipeline}")
def withdraw(
    version: ModelVersion, candidate: Candidate, deployment: DeploymentConfig, data: DataConfig, run: Run
) -> Withdrawal:
    """Hide the version from servers, and see the version before it answer; without one, stop the server.

    A server that was replaced for this version is started again. The withdrawn version is kept, as
    `<number>.withdrawn`.
    """
    model_versions.withdraw(run.model_base_path, version.number)
    record = _server_of_before(run.pipeline)
    if version.previous is None:
        if record is not None:
            model_servers.stop(record)
            server_records.mark_stopped(record)
        return Withdrawal(version.number, serving=None)
    if record is None:
        raise DeployFailed(f"no server of {run.pipeline} runs", "slipway run starts one")
    deadline = Deadline.after(deployment.load_timeout_seconds)
    model_servers.wait_until_live(record, version.previous, deadline, run.log("server-before"))
    _see_it_answer(record, version.previous, candidate, data, run)
    return Withdrawal(version.number, serving=version.previous)


def _server_of_before(model_name: str) -> ServerRecord | None:
    """Return the server that is to serve the version before, started again if it does not run."""
    present, replaced = server_records.read(model_name), server_records.read_replaced(model_name)
    if replaced is not None:
        if present is not None and present.handle != replaced.handle:
            model_servers.stop(present)
        present = model_servers.start(replaced)
        server_records.settle(model_name)
    elif present is not None and not model_servers.is_alive(present):
        present = model_servers.start(present)
    return present


def _see_it_answer(
    record: ServerRecord, version: int, candidate: Candidate, data: DataConfig, run: Run
) -> None:
    tensorflow_process.run(
        "probe",
        Probe,
        log=run.log("withdraw"),
        arguments={
            "grpc": record.grpc,
            "model_name": record.model_name,
            "version": version,
            "examples": candidate.offline / "examples.tfrecord",
            "data": data,
            "count": 3,
            "timeout_seconds": 10.0,
        },
    )
