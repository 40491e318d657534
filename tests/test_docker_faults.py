"""Faults of containers: killed, or replaced by one with other flags or another image, while clients ask."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import psutil
import pytest
from deployed_worlds import Client, RestClient, World, printed
from docker.models.containers import Container
from engine_proxies import engine_proxy
from model_server_fixtures import Models, models  # noqa: F401  (a fixture)
from waiting import eventually

from configs.loading.pipelines import load_pipeline
from tasks.deploys import interrupted_deploys
from tasks.servers import relay, server_container, server_image

pytestmark = pytest.mark.docker
GOOD, BETTER, BAD = 1, 2, 5
DOCKER = {"target": "docker"}
OTHERS = "faulty-others:test"
"""Our image by another name, which Slipway takes for somebody else's: nobody asks it to hand over."""

relayed = pytest.mark.parametrize("world", ["relayed"], indirect=True)
in_both_networks = pytest.mark.parametrize("world", ["relayed", "host"], indirect=True)


@pytest.fixture(scope="module")
def world(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    models: Models,  # noqa: F811
) -> Iterator[World]:
    """A model that is served by a container: behind a relay, or in the machine's network."""
    engine = docker.from_env()
    image = server_image.ensure(engine, None, print)  # which a deploy's deadline here is too short for
    server_image.ensure_relay(engine, print)
    engine.images.get(image).tag(OTHERS)
    folder = tmp_path_factory.mktemp("world")
    made = World(folder, models, folder / "models", network=request.param)
    try:
        configured(made)
        deployed = made.deploy(GOOD)
        assert deployed.get("version") == 1, deployed
        yield made
    finally:
        made.close()
        engine.images.remove(OTHERS)
        printed(made.outcomes, request)


@pytest.fixture(autouse=True)
def _home(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test asks for in its own process is in the world's home."""
    monkeypatch.setenv("SLIPWAY_HOME", str(world.home))


def configured(world: World, threads: int = 2, **server: Any) -> None:
    """Write the pipeline's YAML: a container in this world's network, which other `threads` make another."""
    flags = {"tensorflow_intra_op_parallelism": threads, **server.pop("flags", {})}
    world.configured(deployment=DOCKER, server={"network": world.network, "flags": flags, **server})


def present(world: World) -> Container:
    """Return the container on record."""
    container = server_container.find(docker.from_env(), world.record().handle)
    assert container is not None
    return container


def relay_of(world: World) -> Container:
    """Return the relay's container."""
    return docker.from_env().containers.get(relay.name("faulty"))


def servers(world: World) -> list[str]:
    """Return the names of the containers of this world's model, its relay apart."""
    mine = {"label": [f"slipway.home={world.home}", "slipway.model=faulty"]}
    return [str(each.name) for each in docker.from_env().containers.list(all=True, filters=mine)]


@in_both_networks
def test_a_changed_container_takes_over_without_a_gap(world: World) -> None:
    """The new one answers before the old one drains, at the same addresses; the old one is removed."""
    old = world.record()
    configured(world, threads=1)
    with Client(world.ports[0]) as client, RestClient(world.ports[1]) as rest:
        done = world.deploy(BETTER)
        assert done.get("version") == world.highest(), done
        eventually(lambda: client.models[-1:] == rest.models[-1:] == [BETTER])
    world.tell(f"a changed container ({world.network})", "its deploy", done["server"], client, None)
    new = world.record()
    assert (new.grpc, new.rest) == (old.grpc, old.rest) and new.handle != old.handle
    assert [present(world).name] == servers(world)
    assert rest.failures == client.failures == []


@relayed
def test_another_image_takes_over_without_a_gap(world: World) -> None:
    """One that is not ours, and back to ours: it knows no SIGUSR1, its clients come of age all the same."""
    for image, model in ((OTHERS, GOOD), (None, BETTER)):
        configured(world, image=image)
        with Client(world.ports[0]) as client, RestClient(world.ports[1]) as rest:
            done = world.deploy(model)
            assert "version" in done, done
            eventually(lambda model=model: client.models[-1:] == rest.models[-1:] == [model])
        world.tell(f"another image: {image or 'ours'}", "its deploy", done["server"], client, None)
        assert (world.record().program == OTHERS) == (image == OTHERS)
        assert rest.failures == client.failures == []


@relayed
@pytest.mark.parametrize("boundary", ["before let in", "after let in", "after loaded"])
def test_killed_half_way_it_is_finished_by_the_next_run(world: World, boundary: str) -> None:
    """kill -9 of the flow while there are two servers: the next run needs no hand, and one is left."""
    threads = present(world).attrs["Args"][-1].rpartition("=")[2]
    configured(world, threads=int(threads) + 1)
    with Client(world.ports[0]) as client, RestClient(world.ports[1]) as rest:
        world.killed(BETTER, boundary)
        assert len(servers(world)) == (1 if boundary == "after loaded" else 2)
        done = world.deploy(GOOD)
        eventually(lambda: client.models[-1:] == rest.models[-1:] == [GOOD])
    fault = f"kill -9 of the flow, {boundary}: a changed container takes over"
    world.tell(fault, "the next run", done["recovery"], client, done["seconds"])
    assert "stays: its answers are those it was deployed with" in done["recovery"]
    assert [present(world).name] == servers(world)
    assert rest.failures == client.failures == []


@relayed
def test_one_that_is_no_good_never_takes_over(world: World) -> None:
    """It dies in its rehearsal: the old one was never stopped, and answers as before."""
    old, before = world.record(), world.numbers()
    configured(world, flags={"monitoring_config_file": "/nonexistent"})
    with Client(world.ports[0]) as client:
        failed = world.deploy(BETTER)
    world.tell("a changed container that dies", "the same run", failed["message"], client, None)
    assert failed["error"] == "DeployFailed", failed
    assert (world.record(), world.numbers()) == (old, before)
    assert client.failures == [] and client.models[-1] == client.models[0]


@relayed
def test_with_a_bad_version_the_old_server_has_its_clients_again(world: World) -> None:
    """A changed server and a version that answers otherwise, killed when clients are let in: undone."""
    old, before = world.record(), world.numbers()
    configured(world, threads=7)
    with Client(world.ports[0]) as client, RestClient(world.ports[1]) as rest:
        world.killed(BAD, "after let in", answers=GOOD)
        done = interrupted_deploys.recover(load_pipeline(world.pipeline.folder))
        eventually(lambda: client.models[-1:] == rest.models[-1:] == client.models[:1])
    fault = "the same with a bad version, kill -9 after let in"
    world.tell(fault, "slipway recover", done.done, client, None)
    assert f"is withdrawn; version {before[-1]} answers" in done.done
    assert world.record().handle == old.handle and servers(world) == [present(world).name]
    assert rest.failures == client.failures == []


@relayed
def test_what_the_engine_starts_again_finds_each_other(world: World) -> None:
    """The relay killed, then both as after a reboot, the relay first: answers come without a hand."""
    psutil.Process(relay_of(world).attrs["State"]["Pid"]).kill()
    with Client(world.ports[0]) as client:
        eventually(lambda: client.models)
    stopped = present(world), relay_of(world)
    for container in stopped:
        container.stop()
    for container in reversed(stopped):
        container.start()
    with Client(world.ports[0]) as client, RestClient(world.ports[1]) as rest:
        eventually(lambda: client.models and rest.models)


@relayed
def test_the_server_has_no_way_out_and_the_relay_no_rights(world: World) -> None:
    """It reaches its relay where both are, not in the network beyond; neither container may do anything."""
    networks = relay_of(world).attrs["NetworkSettings"]["Networks"]
    for network, reached in ((relay.network(), True), ("bridge", False)):
        where = (networks[network]["IPAddress"], relay.REST_PORT)
        program = f"import socket; socket.create_connection({where}, timeout=3)"
        done = present(world).exec_run(["python", "-c", program])
        assert (done.exit_code == 0) == reached, (network, done.output)
    assert not present(world).attrs["HostConfig"]["PortBindings"]
    for container in (present(world), relay_of(world)):
        limits = container.attrs["HostConfig"]
        assert limits["CapDrop"] == ["ALL"] and limits["ReadonlyRootfs"] and limits["Memory"]
        assert limits["SecurityOpt"] == ["no-new-privileges"] and limits["PidsLimit"]
        assert container.attrs["Config"]["User"] == "65532:65532"
        assert not [mount for mount in container.attrs["Mounts"] if mount["RW"]]


@relayed
def test_an_engine_that_goes_away_half_way_takes_nothing_down(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published, and no engine to ask after the container: it needs none to take the version, which stays."""
    configured(world, threads=int(present(world).attrs["Args"][-1].rpartition("=")[2]))
    highest = world.highest()
    with engine_proxy(tmp_path / "engine.sock") as engine, Client(world.ports[0]) as client:
        monkeypatch.setenv("DOCKER_HOST", engine.host)
        process = world.stopped(world.candidate(GOOD), "after published")
        engine.gone()
        process.send_signal(signal.SIGCONT)
        without = world.ended(process)
        container = world.record().handle
        engine.back()
        done = world.deploy(BETTER)
        eventually(lambda: client.models[-1:] == [BETTER])
    world.tell("the engine goes away half-way", "the same run", without["server"], client, None)
    assert (without["version"], done["version"]) == (highest + 1, highest + 2)
    assert world.record().handle == container
    assert client.failures == [] and set(client.models) <= {GOOD, BETTER}


@relayed
def test_an_engine_that_goes_away_in_a_takeover_takes_nothing_down(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can be asked to start the new server: the old one goes on, and the next run changes it."""
    configured(world, threads=8)
    old, before, highest = world.record(), world.numbers(), world.highest()
    with engine_proxy(tmp_path / "engine.sock") as engine, Client(world.ports[0]) as client:
        monkeypatch.setenv("DOCKER_HOST", engine.host)
        process = world.stopped(world.candidate(GOOD), "after published")
        engine.gone()
        process.send_signal(signal.SIGCONT)
        failed = world.ended(process)
        assert world.record() == old
        engine.back()
        done = world.deploy(GOOD)
        eventually(lambda: client.models[-1:] == [GOOD])
        assert servers(world) == [present(world).name]
    fault = "the engine goes away in a takeover"
    world.tell(fault, "the next run", done["recovery"], client, done["seconds"])
    assert "no Docker engine answers" in failed["message"]
    assert f"version {highest + 1} is withdrawn; version {before[-1]} answers" in done["recovery"]
    assert done["version"] == highest + 2
    assert world.record().handle != old.handle
    assert client.failures == []


@relayed
@pytest.mark.parametrize("which", ["server", "relay"])
def test_a_container_that_is_gone_is_started_by_the_next_run_first(world: World, which: str) -> None:
    """At the same address, before it trains; then it deploys."""
    live, highest = world.numbers()[-1], world.highest()
    if which == "server":
        present(world).kill()
    else:
        relay_of(world).remove(force=True)
    with Client(world.ports[0]) as client:
        done = world.deploy(GOOD)
        eventually(lambda: client.models[-1:] == [GOOD])
    world.tell(f"the {which}'s container killed", "the next run", done["recovery"], client, done["seconds"])
    assert "was gone: " in done["recovery"]
    assert f"answers with version {live} in its place" in done["recovery"]
    assert done["version"] == highest + 1


@relayed
def test_stopped_for_good_it_leaves_nothing(world: World) -> None:
    """No container, and no network."""
    world.close()
    mine = {"label": f"slipway.home={world.home}"}
    engine = docker.from_env()
    assert engine.containers.list(all=True, filters=mine) == engine.networks.list(filters=mine) == []
