"""The relay of a model: the container that clients connect to, while the server behind it may be replaced.

It is HAProxy (containers/relay). It publishes the model's ports; the engine's own proxy, which does so where
there is no relay, knows one container for life. The servers behind it publish nothing, in a network that is
internal: a model's code reaches relays and servers of this $SLIPWAY_HOME, and nothing beyond this machine.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError
from docker.models.containers import Container
from docker.types import Mount

from configs.schema.home import home, servers_folder
from tasks.core import durable_files
from tasks.core.errors import DeployFailed
from tasks.servers import server_image
from tasks.servers.server_image import engine, find
from tasks.state.server_records import LOOPBACK, ServerRecord

GRPC_PORT, REST_PORT = 8500, 8501
"""Ports inside a container, as the official image has them."""

_CONFIG_INSIDE = "/etc/relay"
_CONFIG = "server.cfg"
_CONTROL = ("python3", "-P", "/opt/relay/control.py")
_PLACE = "slipway.relay"
"""Label: hash of all that makes a relay fit, its image apart: one that runs goes on when the base changes."""
_USER = "65532:65532"
_RESTARTED: Any = {"Name": "unless-stopped"}


def of_home() -> str:
    """Return a name that two checkouts on one machine do not share."""
    return hashlib.sha256(str(home()).encode()).hexdigest()[:8]


def network() -> str:
    """Return the name of the network in which relays reach servers."""
    return f"slipway-{of_home()}"


def name(model_name: str) -> str:
    """Return the relay's name."""
    return f"slipway-{model_name}-{of_home()}-relay"


def have_network(client: docker.DockerClient) -> None:
    """Create the internal network, which has no route off this machine."""
    if not client.networks.list(names=[f"^{re.escape(network())}$"]):
        client.networks.create(network(), internal=True, check_duplicate=True, labels=_labels())


def _labels() -> dict[str, str]:
    return {"slipway.home": str(home())}


def stand_before(record: ServerRecord, server: str) -> None:
    """Start a relay at the record's address, and route new connections to the container `server`.

    Connections that there are stay where they are. Killed half-way, it is to be called again. Raises
    DeployFailed where a relay cannot be started, or does not find the server.
    """
    client = engine()
    container = find(client, name(record.model_name))
    if container is not None and container.labels.get(_PLACE) != _place(record):
        stop(record.model_name)
        container = None
    _write_config(record.model_name, server)
    if container is None:
        container = _made(client, record)
    if container.status != "running":
        _run(container)
    _ordered(record.model_name, "point", server)


def passes_to(model_name: str) -> str:
    """Return the container that new connections go to, "" where there is no relay."""
    try:
        text = (_folder(model_name) / _CONFIG).read_text()
    except FileNotFoundError:
        return ""
    found = re.search(r"^ *setenv SERVER (\S+)$", text, re.MULTILINE)
    return found[1] if found else ""


def is_running(model_name: str) -> bool:
    """Return whether the relay accepts clients."""
    container = find(engine(), name(model_name))
    return container is not None and container.status == "running"


def server_status(model_name: str, server: str) -> str:
    """Return what a server behind the relay says of its versions (`GET /v1/models/NAME`); "" if nothing."""
    return _ordered(model_name, "status", server, model_name)


def connections(model_name: str, server: str) -> int:
    """Return how many connections of clients a server behind the relay has."""
    return int(_ordered(model_name, "connections", server))


def stop(model_name: str) -> None:
    """Remove the model's relay, and the network with the last one."""
    client = engine()
    container = find(client, name(model_name))
    if container is not None:
        container.remove(force=True)
    shutil.rmtree(_folder(model_name), ignore_errors=True)
    try:
        client.networks.get(network()).remove()
    except APIError:  # somebody is in it, or it is not there
        pass


def _folder(model_name: str) -> Path:
    return servers_folder() / f"{model_name}.relay"


def _write_config(model_name: str, server: str) -> None:
    """Write what a relay that the engine starts again is to pass on to. Readable by the relay's user."""
    file = _folder(model_name) / _CONFIG
    if passes_to(model_name) != server:  # a full disk is no reason not to go back to the one of before
        durable_files.write(file, f"global\n    setenv SERVER {server}\n".encode(), synced=False)
    file.parent.chmod(0o755)
    file.chmod(0o644)


def _place(record: ServerRecord) -> str:
    """Return the label of a relay that fits."""
    files = (server_image.RELAY_CONTEXT / each for each in ("haproxy.cfg", "control.py"))
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in files))
    digest.update(repr(ports(record)).encode())
    return digest.hexdigest()[:12]


def ports(record: ServerRecord) -> dict[str, tuple[str, int]]:
    """Return where the ports inside a container are published."""
    return {
        f"{GRPC_PORT}/tcp": (record.address, record.grpc_port),
        # The official server's REST API knows no TLS.
        f"{REST_PORT}/tcp": (LOOPBACK if record.tls else record.address, record.rest_port),
    }


def _made(client: docker.DockerClient, record: ServerRecord) -> Container:
    """Make the relay; once started, the engine starts it again when it dies and after a reboot."""
    try:
        container = client.containers.create(
            record.relay,
            name=name(record.model_name),
            user=_USER,
            read_only=True,
            tmpfs={"/tmp": "size=1m,mode=1777"},  # noqa: S108 (inside the container)
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            labels={**_labels(), "slipway.relay-of": record.model_name, _PLACE: _place(record)},
            mounts=[Mount(_CONFIG_INSIDE, str(_folder(record.model_name)), type="bind", read_only=True)],
            ports=ports(record),
            mem_limit="512m",
            memswap_limit="512m",
            pids_limit=64,
            restart_policy=_RESTARTED,
        )
        have_network(client)
        client.networks.get(network()).connect(container)
    except APIError as error:
        raise DeployFailed(f"relay {name(record.model_name)} cannot be made: {error.explanation}") from None
    return container


def _run(container: Container) -> None:
    try:
        container.start()
    except APIError as error:
        raise DeployFailed(f"relay {container.name} did not start: {error.explanation}") from None


def _ordered(model_name: str, *command: str) -> str:
    """Run a command of the relay's control.py and return its output. Raises DeployFailed."""
    container = find(engine(), name(model_name))
    if container is None:
        raise DeployFailed(f"relay {name(model_name)} is gone")
    try:
        code, output = container.exec_run([*_CONTROL, *command])
    except APIError as error:
        raise DeployFailed(f"relay {container.name} cannot be asked: {error.explanation}") from None
    text = str(output, errors="replace")  # type: ignore[arg-type]  # bytes, as it is not streamed
    if code:
        log = container.logs(tail=5).decode(errors="replace")
        raise DeployFailed(f"relay {container.name}: {command[0]}: {text.strip()}", f"its log:\n{log}")
    return text
