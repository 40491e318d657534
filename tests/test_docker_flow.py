"""The whole chain with the server in a container of a real Docker engine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import docker
import pytest
from finished_runs import run_from_publish
from op_library import compiled, pipeline
from served_digits import DigitsLoop, held_out, served_accuracy
from slipway_command import DIGITS, QUICK, Finished, Slipway

from tasks.servers import model_servers, server_image
from tasks.state import server_records

pytestmark = pytest.mark.docker

NO_ENGINE = "unix:///nonexistent/docker.sock"


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.DockerClient]:
    """The engine, with our image built: the time that takes is not a test's."""
    client = docker.from_env(timeout=600)
    server_image.ensure(client, None, print)
    server_image.ensure_relay(client, print)
    yield client
    client.close()


@pytest.fixture(scope="module")
def deployed(engine: docker.DockerClient, module_slipway: Slipway) -> Finished:
    """The digits, served in a container because an engine answers."""
    return module_slipway.run(DIGITS, *QUICK, "deployment.target=auto")


@pytest.fixture(scope="module")
def container(deployed: Finished, module_slipway: Slipway, engine: docker.DockerClient) -> dict[str, Any]:
    """What the engine says of the server's container."""
    assert deployed.exit_code == 0, deployed.output
    return dict(engine.containers.get(module_slipway.record("digits")["handle"]).attrs)


def test_where_an_engine_answers_auto_means_a_container(deployed: Finished, module_slipway: Slipway) -> None:
    """The demo needs no option to serve in a container."""
    assert deployed.exit_code == 0, deployed.output
    assert module_slipway.record("digits")["target"] == "docker"
    assert "a Docker engine answers" in deployed.verdict["stages"][1]["summary"]


def test_the_container_answers_for_the_held_out_digits(deployed: Finished, module_slipway: Slipway) -> None:
    """Asked over gRPC about digits it never saw, the container is right 95% of the time."""
    records, labels = held_out(deployed, module_slipway)
    assert served_accuracy(deployed.verdict["endpoint"]["grpc"], records, labels) >= 0.95


def test_the_container_can_do_no_harm(container: dict[str, Any], engine: docker.DockerClient) -> None:
    """Not root, read-only root and models, no capabilities, limits; its relay is on loopback."""
    processors = int(engine.info()["NCPU"])
    host = container["HostConfig"]
    assert container["Config"]["User"] not in ("", "0", "root")
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert "no-new-privileges" in host["SecurityOpt"][0]
    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (4096 << 20, 4096 << 20, 512)
    assert host["NanoCpus"] == max(1, processors - 1) * 10**9
    assert not container["Mounts"][0]["RW"]
    assert not host["PortBindings"]
    mine = {"label": f"slipway.home={container['Config']['Labels']['slipway.home']}"}
    (relay,) = (each for each in engine.containers.list(filters=mine) if each.id != container["Id"])
    bindings = relay.attrs["HostConfig"]["PortBindings"].values()
    assert [binding["HostIp"] for ports in bindings for binding in ports] == ["127.0.0.1", "127.0.0.1"]


def test_more_processors_than_there_are_is_told_first(engine: docker.DockerClient, slipway: Slipway) -> None:
    """By preflight, before anything is trained."""
    refused = slipway.run(DIGITS, *QUICK, "deployment.target=docker", "server.limits.cpus=4096")
    assert refused.exit_code == 1
    assert "server.limits.cpus is 4096, and the Docker engine has" in refused.verdict["error"]["message"]
    assert refused.verdict["stages"][-1]["name"] == "preflight"


def test_a_proven_container_comes_back_with_the_machine(container: dict[str, Any]) -> None:
    """Once it was seen to work, the engine restarts it after a crash or a reboot."""
    assert container["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"


def test_a_second_run_swaps_into_the_same_container(
    deployed: Finished, container: dict[str, Any], module_slipway: Slipway
) -> None:
    """Same container, same ports, a higher version, and no failed answer meanwhile."""
    with DigitsLoop(deployed.verdict["endpoint"]["grpc"], held_out(deployed, module_slipway)) as client:
        again = run_from_publish(module_slipway, "deployment.target=docker")
    assert again.exit_code == 0, again.output
    assert module_slipway.record("digits")["handle"] == container["Id"]
    assert again.verdict["endpoint"] == deployed.verdict["endpoint"]
    assert client.failures == []
    assert client.versions == [deployed.verdict["version"], again.verdict["version"]]


@pytest.mark.parametrize("damage", ["missing", "emptied", "cut"])
def test_a_damaged_record_is_rebuilt_from_the_container(
    damage: str, container: dict[str, Any], module_slipway: Slipway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it, so that the next run swaps into the same container, and `slipway stop` finds it."""
    file = module_slipway.home / "servers" / "digits.json"
    before, text = module_slipway.record("digits"), file.read_text()
    monkeypatch.setenv("SLIPWAY_HOME", str(module_slipway.home))
    try:
        file.unlink() if damage == "missing" else file.write_text("" if damage == "emptied" else text[:40])
        rebuilt = model_servers.recorded("digits")
    finally:
        file.write_text(text)
    kept = server_records.parsed(before)
    assert rebuilt is not None and abs(_seconds(rebuilt.started_at) - _seconds(kept.started_at)) < 60
    assert replace(rebuilt, started_at=kept.started_at) == kept


def _seconds(instant: str) -> float:
    return datetime.fromisoformat(instant).timestamp()


def test_a_container_whose_engine_is_hidden_is_still_swapped(
    deployed: Finished, container: dict[str, Any], module_slipway: Slipway
) -> None:
    """The server needs no engine to load a new version, and the run says that none answers."""
    again = run_from_publish(module_slipway, "deployment.target=auto", DOCKER_HOST=NO_ENGINE)
    assert again.exit_code == 0, again.output
    assert "still answers, though no Docker engine answers" in again.verdict["stages"][1]["summary"]
    assert again.verdict["endpoint"] == deployed.verdict["endpoint"]


def test_a_container_that_dies_while_loading_is_told_with_its_log(
    engine: docker.DockerClient, slipway: Slipway
) -> None:
    """The error holds the last lines of the container's log; the version is withdrawn."""
    failed = run_from_publish(
        slipway,
        "deployment.target=docker",
        "server.flags.saved_model_tags=nobody",
        "server.flags.max_num_load_retries=0",
    )
    assert failed.exit_code == 1
    assert failed.verdict["error"]["class"] == "DeployFailed"
    assert "nobody" in failed.verdict["error"]["hint"]
    assert slipway.versions("digits") == []
    assert json.loads((slipway.home / "verdict.json").read_text())["outcome"] == "failed"


def test_models_that_the_server_could_not_read_are_told(
    engine: docker.DockerClient, slipway: Slipway, tmp_path: Path
) -> None:
    """A base path that is root's and closed to others is named, with what to do; nothing stays published."""
    base = tmp_path / "closed"
    base.mkdir(mode=0o700)
    closed = slipway.run(DIGITS, *QUICK, "deployment.target=docker", f"export.model_base_path={base}")
    if os.geteuid() != 0:
        assert closed.exit_code == 0, closed.output
        return
    assert closed.exit_code == 1
    assert f"chmod o+rx {base}" in closed.verdict["error"]["hint"]
    assert not [child for child in base.iterdir() if child.name.isdigit()]


def test_without_a_base_image_auto_serves_by_a_process(engine: docker.DockerClient, slipway: Slipway) -> None:
    """Where no base image can be had, one line says so, and how to make one."""
    done = run_from_publish(slipway, "deployment.target=auto", SLIPWAY_BASE_IMAGE="localhost:9/nothing:here")
    assert done.exit_code == 0, done.output
    assert slipway.record("digits")["target"] == "process"
    assert "make base-image" in done.verdict["stages"][1]["summary"]


def test_stop_drains_and_removes_the_container(
    deployed: Finished, container: dict[str, Any], module_slipway: Slipway, engine: docker.DockerClient
) -> None:
    """After `slipway stop` no container of the model is left, nor its relay."""
    stopped = module_slipway("stop", DIGITS)
    assert stopped.exit_code == 0, stopped.output
    mine = {"label": f"slipway.home={container['Config']['Labels']['slipway.home']}"}
    assert engine.containers.list(all=True, filters=mine) == []


def test_a_run_after_stop_starts_a_new_container(
    deployed: Finished, module_slipway: Slipway, engine: docker.DockerClient
) -> None:
    """At the address before: the record of the stopped server keeps its ports, and names no container."""
    if module_slipway.record("digits")["handle"]:
        assert module_slipway("stop", DIGITS).exit_code == 0
    again = run_from_publish(module_slipway, "deployment.target=docker")
    assert again.exit_code == 0, again.output
    assert again.verdict["endpoint"] == deployed.verdict["endpoint"]
    assert "(started)" in {stage["name"]: stage["summary"] for stage in again.verdict["stages"]}["deploy"]


def test_a_custom_op_is_served_in_a_container(
    engine: docker.DockerClient, slipway: Slipway, tmp_path: Path
) -> None:
    """Its library is mounted beside the model: the image has none, nor the pipeline's folder."""
    library = compiled(tmp_path / "plus_one.so")
    done = slipway.run(pipeline(tmp_path / "custom", library, "plus_one.so"), "deployment.target=docker")
    assert done.exit_code == 0, done.output
    mounts = engine.containers.get(slipway.record("plain-graph")["handle"]).attrs["Mounts"]
    assert "/ops/plus_one.so" in {each["Destination"] for each in mounts if not each["RW"]}
