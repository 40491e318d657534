"""Stage 0, preflight: all that can be known to be wrong with this machine, before anything is changed."""

from __future__ import annotations

import re
import socket
from pathlib import Path

from configs.schema.pipeline import DeploymentConfig, ExportConfig, LimitsConfig, Recipe, ServerConfig
from tasks.core import op_libraries
from tasks.core.artifacts import BuiltModel, ContainerLimits, Run, ServingTarget
from tasks.core.errors import EnvironmentFault, ImageUnavailable
from tasks.examples.parquet_files import require_pyarrow
from tasks.processes import tensorflow_process
from tasks.runs.stages import report, stage
from tasks.servers import model_servers, model_status, server_container, server_image, server_process
from tasks.state import model_versions, server_records
from tasks.state.server_records import ServerRecord

_ALL = "0.0.0.0"  # noqa: S104 (what a YAML may say, with TLS or on purpose)


@stage("preflight", run_name="preflight of {run.pipeline}")
def preflight(
    deployment: DeploymentConfig, server: ServerConfig, recipe: Recipe, export: ExportConfig, run: Run
) -> ServingTarget:
    """Decide where to serve, build the image if needed, check ports and folder, and build the model's graphs.

    Raises EnvironmentFault for a folder that is not writable, a port that somebody else has, an engine
    that does not answer where one is asked for, an image that cannot be had or built, an external server
    that does not answer though there are versions, a resumed run whose version is no longer the highest;
    ModelError or ConfigError for a model that cannot be built as configured.
    """
    target = serving_target(deployment, server, run)
    if recipe.data.format == "parquet":
        require_pyarrow()
    build_model(recipe, export, run, run.log("preflight"))
    return target


def build_model(recipe: Recipe, export: ExportConfig, run: Run, log: Path) -> BuiltModel:
    """Build the Estimator, its training and evaluation graphs and its serving graph, without data."""
    return tensorflow_process.run(
        "build", BuiltModel, log=log,
        arguments={
            "model": recipe.model, "training": recipe.training, "evaluation": recipe.evaluation,
            "data": recipe.data, "export": export, "run": run,
        },
    )  # fmt: skip


def serving_target(deployment: DeploymentConfig, server: ServerConfig, run: Run) -> ServingTarget:
    """Return where to serve, after all checks but that of the model. Raises EnvironmentFault."""
    model_versions.require_writable(run.model_base_path)
    _refuse_superseded(run)
    record = model_servers.running(run.pipeline)
    server = _beside_the_yaml(server, run)
    if deployment.host is not None:
        return _external(deployment, deployment.host, server, run)
    kind, program, reason = _choose(deployment, server, record)
    libraries = op_libraries.found(run.ops, run.source) if server.is_ours else ()
    address = str(server.address) if kind == "docker" else server_records.LOOPBACK
    _refuse_tls_that_asks_back(server)
    if kind == "docker":
        server_container.user(run.model_base_path, server.ssl_config_file)
    _refuse_foreign(address)
    ports = _ports(deployment, record, run.pipeline, address)
    return ServingTarget(
        kind=kind,
        reason=reason,
        program=program,
        identity=model_servers.identity(kind, server, program, run.model_base_path, libraries),
        live_version=model_status.live_version(record.rest, run.pipeline) if record else None,
        flags=tuple(model_servers.own_flags(server)),
        network=server.network if kind == "docker" else "published",
        relay=_relay(server, record) if kind == "docker" else "",
        limits=_limits(server.limits, record) if kind == "docker" else None,
        address=address,
        tls=server.ssl_config_file,
        host=server_records.LOOPBACK if address == _ALL else address,
        published_only=server.serves_published_only,
        ops=tuple(str(each.path) for each in libraries),
        grpc_port=ports["grpc_port"],
        rest_port=ports["rest_port"],
    )


def _refuse_tls_that_asks_back(server: ServerConfig) -> None:
    """Refuse keys that are not there, and mutual TLS: what a run asks of the server shows no certificate."""
    if not server.ssl_config_file:
        return
    file = Path(server.ssl_config_file)
    try:
        text = file.read_text(errors="replace")
    except OSError as error:
        message = f"server.flags.ssl_config_file {file} cannot be read: {error.strerror}"
        raise EnvironmentFault(message, "the path is relative to the YAML") from None
    if re.search(r"^\s*client_verify\s*:\s*(true|True|t|1)\b", text, re.MULTILINE):
        message = f"{file} says client_verify: a run has no certificate to show when it asks the server"
        raise EnvironmentFault(message, "leave it out, or run the server yourself (target external)")


def _refuse_foreign(address: str) -> None:
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            message = f"server.address {address} cannot be listened on: {error.strerror}"
            raise EnvironmentFault(message, "name an address of this machine, or 0.0.0.0 for all") from None


def _refuse_superseded(run: Run) -> None:
    """Refuse to go on with a run whose version was published, and is no longer the highest.

    Servers take the highest: they would never load it, and an older night's model is not to replace a
    newer one's.
    """
    found = model_versions.published_by(run.model_base_path, run.run_id)
    highest = max(model_versions.versions(run.model_base_path), default=0)
    if found is not None and int(found[0].name) < highest:
        number = int(found[0].name)
        message = f"run {run.run_id} published version {number}, and version {highest} came after it"
        raise EnvironmentFault(message, f"slipway rollback --to {number} has servers take it again")


def _external(deployment: DeploymentConfig, host: str, server: ServerConfig, run: Run) -> ServingTarget:
    """Return the server that somebody else runs at `host`.

    Before there is a version it need not answer: the official server listens once it has loaded one.
    """
    rest = f"http://{host}:{deployment.rest_port}"
    if model_versions.versions(run.model_base_path) and not model_status.answers(rest):
        message = f"nothing answers at {rest}, where {run.pipeline} is served, by deployment.host"
        raise EnvironmentFault(message, "start it, or correct deployment.host and deployment.rest_port")
    return ServingTarget(
        kind="external",
        reason=f"served by {host}, ports {deployment.grpc_port} and {deployment.rest_port}, as configured",
        program=host,
        identity=model_servers.identity("external", server, host, run.model_base_path),
        live_version=model_status.live_version(rest, run.pipeline),
        grpc_port=deployment.grpc_port,
        rest_port=deployment.rest_port,
        host=host,
    )


def _beside_the_yaml(server: ServerConfig, run: Run) -> ServerConfig:
    """Return `server` with the paths of its files absolute: relative ones are relative to the YAML."""
    absolute: dict[str, object] = {}
    if server.executable is not None:
        absolute["executable"] = run.source / server.executable.expanduser()
    if server.ssl_config_file:
        keys = run.source / Path(server.ssl_config_file).expanduser()
        absolute["flags"] = {**server.flags, "ssl_config_file": str(keys)}
    return server.model_copy(update=absolute)


def _choose(
    deployment: DeploymentConfig, server: ServerConfig, record: ServerRecord | None
) -> tuple[str, str, str]:
    """Return target kind, program and the reason, a sentence."""
    if deployment.target == "process" or server.executable is not None:
        return _process(server, "served by a local process, as configured")
    if deployment.target == "docker" or server.image is not None:
        return _container(server, "served in a container, as configured")
    return _choose_by_itself(server, record)


def _choose_by_itself(server: ServerConfig, record: ServerRecord | None) -> tuple[str, str, str]:
    if record is not None and record.target == "process":
        return _process(server, "the server that runs is a local process")
    try:
        return _container(server, "served in a container: a Docker engine answers")
    except ImageUnavailable as error:
        return _process(server, f"served by a local process: {error.message} ({error.hint})")
    except EnvironmentFault as error:
        if record is not None:
            return "docker", record.program, f"the container that runs still answers, though {error.message}"
        return _process(server, f"served by a local process: {error.message}")


def _process(server: ServerConfig, reason: str) -> tuple[str, str, str]:
    if server.executable is None:
        return "process", server_process.OWN_PROGRAM, reason
    server_process.require_executable(server.executable)
    return "process", str(server.executable), reason


def _container(server: ServerConfig, reason: str) -> tuple[str, str, str]:
    return "docker", server_image.ensure(server_image.engine(), server.image, _tell), reason


def _relay(server: ServerConfig, record: ServerRecord | None) -> str:
    """Return the relay's image. Where no engine answers, the relay that runs keeps the one that it has."""
    if server.network != "relayed":
        return ""
    try:
        return server_image.ensure_relay(server_image.engine(), _tell)
    except EnvironmentFault:
        if record is not None and record.relay:
            return record.relay
        raise


def _limits(wanted: LimitsConfig, record: ServerRecord | None) -> ContainerLimits | None:
    """Return the limits of the container, of an engine with so many processors.

    Where no engine answers, the container that runs keeps those that it has.
    """
    try:
        processors = int(server_image.engine().info()["NCPU"])
    except EnvironmentFault:
        return record.limits if record is not None else None
    if wanted.cpus is not None and wanted.cpus > processors:
        message = f"server.limits.cpus is {wanted.cpus:g}, and the Docker engine has {processors}"
        raise EnvironmentFault(message, "give at most so many")
    cpus = wanted.cpus if wanted.cpus is not None else max(1, processors - 1)
    return ContainerLimits(wanted.memory_mb, cpus, wanted.pids)


def _tell(line: str) -> None:
    report({"message": line})


def _ports(
    deployment: DeploymentConfig, record: ServerRecord | None, model_name: str, address: str
) -> dict[str, int]:
    """Return the two ports: those of the running server where they will do, else free ones."""
    before = record or model_servers.recorded(model_name)
    own = {record.grpc_port, record.rest_port} if record else set()
    for name in ("grpc_port", "rest_port"):
        _refuse_taken(name, getattr(deployment, name), own, address)
    last_grpc, last_rest = (before.grpc_port, before.rest_port) if before else (None, None)
    grpc = _port(deployment.grpc_port, last_grpc, own, not_this=deployment.rest_port)
    return {"grpc_port": grpc, "rest_port": _port(deployment.rest_port, last_rest, own, not_this=grpc)}


def _port(wanted: int, last: int | None, own: set[int], not_this: int) -> int:
    if not wanted and last in own and last != not_this:
        return int(last)
    return model_servers.choose_port(wanted, last, not_this)


def _refuse_taken(name: str, wanted: int, own: set[int], address: str) -> None:
    if wanted and wanted not in own and (holder := model_servers.port_holder(wanted, address)):
        raise EnvironmentFault(
            f"deployment.{name} {wanted} is in use by {holder}",
            "stop that program, name another port, or 0 to have a free one picked",
        )
