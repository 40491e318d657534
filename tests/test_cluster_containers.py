"""A cluster whose processes are in containers of their own, on a private Docker network; one is killed."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import docker
import pytest
from cluster_hosts import Training, make_pool, worker_command
from docker.models.containers import Container
from docker.models.networks import Network
from slipway_command import REPOSITORY
from waiting import eventually

from tasks.clusters.relay import relays
from tasks.servers.server_image import LOCAL_BASE, PUBLIC_BASE

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.docker,
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="libraries are mounted into Debian 12's 3.11"),
]

TWO_WORKERS = "configs/two_workers"
DEADLINE_SECONDS = 500.0  # steps of seconds each; one of them has taken two minutes under a load of 24
PACKAGES = next(path for path in sys.path if path.endswith("site-packages"))


class Hosts:
    """Containers with this checkout and its libraries, read-only, that share one $SLIPWAY_HOME."""

    def __init__(self, engine: docker.DockerClient, network: Network, home: Path, api: str) -> None:
        self._engine, self._network, self._home = engine, network, home
        base = LOCAL_BASE if engine.images.list(LOCAL_BASE) else PUBLIC_BASE
        self._options = {
            "image": base, "network": network.name, "detach": True, "working_dir": str(REPOSITORY),
            "user": f"{os.getuid()}:{os.getgid()}", "read_only": True, "tmpfs": {"/tmp": ""},
            "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"],
            "volumes": {path: {"bind": path, "mode": mode} for path, mode in
                        ((str(REPOSITORY), "ro"), (PACKAGES, "ro"), (str(home), "rw"))},
            "environment": {
                "PYTHONPATH": f"{REPOSITORY}:{PACKAGES}", "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/tmp",
                "SLIPWAY_HOME": str(home), "PREFECT_HOME": "/tmp/prefect", "PREFECT_API_URL": api,
                "DO_NOT_TRACK": "1", "PREFECT_WORKER_QUERY_SECONDS": "1",
            },
        }  # fmt: skip
        self.all: dict[str, Container] = {}

    def start(self, name: str, *command: str) -> Container:
        """Start a host that runs `python3 <command>`; its name is for us."""
        self.all[name] = self._engine.containers.run(
            command=["python3", *command], hostname=name, **self._options
        )
        return self.all[name]

    def of(self, training: Training, process: str) -> Container:
        """The host that a process of the cluster is on."""
        return self.all[training.host_of(process)]

    def remove(self) -> None:
        for container in self.all.values():
            container.remove(force=True)


@pytest.fixture
def network() -> Iterator[Network]:
    """A network that only its containers and this machine can reach."""
    engine = docker.from_env(timeout=120)
    network = engine.networks.create(f"slipway-test-{uuid.uuid4().hex[:8]}", internal=True)
    network.reload()
    yield network
    network.remove()
    engine.close()


def test_a_host_is_killed_and_training_reaches_its_last_step(
    network: Network, home: Path, prefect_api: str, request: pytest.FixtureRequest
) -> None:
    """Chief, worker and parameter server each have a host; a spare one takes the place of the worker's.

    The chief is halted until the worker is back, so that steps are left for it. All flow runs are at an end.
    """
    (configured,) = network.attrs["IPAM"]["Config"]
    home.mkdir()
    pool = make_pool(prefect_api)
    with relays([lambda: prefect_api.split("/")[2]], host=configured["Gateway"]) as (server,):
        hosts = Hosts(network.client, network, home, f"http://{server}/api")
        request.addfinalizer(hosts.remove)
        for name in ("host-0", "host-1", "spare"):
            hosts.start(name, *worker_command(pool, name))
        chief = hosts.start(
            "chief-host", "-m", "flows.retrain", TWO_WORKERS,
            "--set", f"training.cluster.work_pool={pool}",
            "--set", f"training.cluster.network={IPv4Network(configured['Subnet'])}",
            "--set", "training.cluster.ports=[20000, 20009]",
            "--set", "training.cluster.lease_seconds=15", "--set", "training.max_steps=4000",
        )  # fmt: skip
        training = Training(home, prefect_api)
        eventually(lambda: training.makes_steps("worker-0"), DEADLINE_SECONDS, every=0.5)
        trainer, lost = training.playing("chief"), hosts.of(training, "worker-0")
        trainer.suspend()
        lost.kill()
        eventually(
            lambda: training.log("worker-0").count("Start Tensorflow server.") == 2,
            DEADLINE_SECONDS,
            every=0.5,
        )
        eventually(lambda: training.makes_steps("worker-0"), DEADLINE_SECONDS, every=0.5)
        assert hosts.of(training, "worker-0") != lost
        trainer.resume()
        ended = chief.wait(timeout=DEADLINE_SECONDS)
        output = chief.logs().decode()
    assert ended["StatusCode"] == 0, output
    assert "checkpoint at step 4,00" in output
    assert training.states() == {"worker-0": ["Crashed", "Completed"], "ps-0": ["Completed"]}
