"""Faults of containers: killed, or replaced by one with other flags, while clients ask."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from deployed_worlds import Client, RestClient, World
from engine_proxies import engine_proxy
from model_server_fixtures import Models, models  # noqa: F401  (a fixture)
from waiting import eventually

from tasks.servers import server_container, server_image

pytestmark = pytest.mark.docker
GOOD, BETTER = 1, 2
DOCKER = {"target": "docker"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, models: Models) -> Iterator[World]:  # noqa: F811
    """A model that is served by a container in the machine's network."""
    server_image.ensure(docker.from_env(), None, print)  # which a deploy's deadline here is too short for
    folder = tmp_path_factory.mktemp("world")
    made = World(folder, models, folder / "models")
    try:
        made.configured(deployment=DOCKER, server={"network": "host"})
        deployed = made.deploy(GOOD)
        assert deployed.get("version") == 1, deployed
        yield made
    finally:
        made.close()


def test_a_changed_container_takes_over_without_a_gap(world: World) -> None:
    """The new one answers before the old one drains, at the same addresses; the old one is removed."""
    old = world.record()
    flags = {"tensorflow_intra_op_parallelism": 1}
    world.configured(deployment=DOCKER, server={"network": "host", "flags": flags})
    with Client(world.ports[0]) as client, RestClient(world.ports[1]) as rest:
        done = world.deploy(BETTER)
        assert done.get("version") == 2, done
        eventually(lambda: client.models[-1:] == rest.models[-1:] == [BETTER])
    new = world.record()
    assert (new.grpc, new.rest) == (old.grpc, old.rest) and new.handle != old.handle
    engine = docker.from_env()
    assert server_container.find(engine, old.handle) is None
    names = [container.name for container in engine.containers.list(all=True)]
    assert not [name for name in names if name.startswith("slipway-faulty-") and "rehearsal" in name]
    assert rest.failures == client.failures == []


def test_an_engine_that_goes_away_half_way_takes_nothing_down(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published, and no engine to ask after the container: what serves goes on, and the next run deploys."""
    before = world.numbers()
    with engine_proxy(tmp_path / "engine.sock") as engine, Client(world.ports[0]) as client:
        monkeypatch.setenv("DOCKER_HOST", engine.host)
        process = world.stopped(world.candidate(GOOD), "after published")
        engine.gone()
        process.send_signal(signal.SIGCONT)
        failed = world.ended(process)
        container = world.record().handle
        engine.back()
        done = world.deploy(GOOD)
        eventually(lambda: client.models[-1:] == [GOOD])
    assert "no Docker engine answers" in failed["message"]
    assert f"version {before[-1] + 1} is withdrawn; version {before[-1]} answers" in done["recovery"]
    assert done["version"] == before[-1] + 2 == world.numbers()[-1]
    assert world.record().handle == container
    assert client.failures == [] and set(client.models) <= {GOOD, BETTER}


def test_a_killed_container_is_started_by_the_next_run_first(world: World) -> None:
    """At the same address, before it trains; then it deploys."""
    container = server_container.find(docker.from_env(), world.record().handle)
    assert container is not None
    before = world.highest()
    container.kill()
    with Client(world.ports[0]) as client:
        done = world.deploy(GOOD)
        eventually(lambda: client.models[-1:] == [GOOD])
    assert "was gone: " in done["recovery"]
    assert f"answers with version {before} in its place" in done["recovery"]
    assert done["version"] == before + 1
