"""Servers that speak TLS, and containers that others reach: deployed, proven, asked."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import grpc
import pytest
from certificates import Authority, ssl_config
from deployed_worlds import World
from model_server_fixtures import Models, expected, models  # noqa: F401  (a fixture)

from tasks.servers import relay, server_container, server_image

GOOD, BETTER = 1, 2
AUTHORITY = Authority("the authority of this test")
TLS = {"flags": {"ssl_config_file": "keys.cfg"}}


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory, models: Models) -> Iterator[World]:  # noqa: F811
    """A model that nothing serves yet, and keys for its server beside the YAML."""
    folder = tmp_path_factory.mktemp("world")
    made = World(folder, models, folder / "models")
    ssl_config(made.pipeline.folder / "keys.cfg", AUTHORITY.identity("server"))
    try:
        yield made
    finally:
        made.close()


def asked(world: World, x: float) -> float:
    """Ask as a client that trusts the authority."""
    from model_server_requests import TIMEOUT, floats, predict_request, spec
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    trusted = grpc.ssl_channel_credentials(AUTHORITY.certificate.encode())
    with grpc.secure_channel(f"127.0.0.1:{world.ports[0]}", trusted) as channel:
        predict = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
        return float(
            predict(predict_request(spec("faulty"), x=floats(x)), timeout=TIMEOUT).outputs["y"].float_val[0]
        )


def test_a_server_with_tls_is_proven_and_swapped(world: World) -> None:
    """The canary and the smoke test speak TLS too; renewed keys are another server."""
    world.configured(deployment={"canary": True}, server=TLS)
    assert world.deploy(GOOD).get("version") == 1
    assert asked(world, 3.0) == expected(3.0, GOOD)
    before = world.server()
    assert world.deploy(BETTER).get("version") == 2
    assert asked(world, 3.0) == expected(3.0, BETTER) and world.server() == before
    ssl_config(world.pipeline.folder / "keys.cfg", AUTHORITY.identity("server renewed"))
    assert world.deploy(GOOD).get("version") == 3
    assert world.server() != before


@pytest.mark.parametrize(
    ("keys", "said"),
    [("", "cannot be read: No such file"), ("client_verify: true", "has no certificate to show")],
)
def test_keys_that_no_run_could_ask_with_are_told_first(world: World, keys: str, said: str) -> None:
    """Before anything is published: keys that are not there, and mutual TLS."""
    file = world.pipeline.folder / "keys.cfg"
    file.write_text(keys) if keys else file.unlink()
    world.configured(server=TLS)
    assert said in world.deploy(GOOD)["message"]
    assert world.numbers() == []


@pytest.mark.docker
@pytest.mark.parametrize("network", ["relayed", "published"])
@pytest.mark.parametrize("server", [TLS, {"insecure": True}], ids=["TLS", "insecure"])
def test_a_container_on_all_addresses(
    world: World, server: dict[str, object], network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TLS, REST, which has none, stays on loopback; the canary was on loopback anyway."""
    monkeypatch.setenv("SLIPWAY_HOME", str(world.home))
    engine = docker.from_env()
    server_image.ensure(engine, None, print)
    server_image.ensure_relay(engine, print)
    keys = {"address": "0.0.0.0", "network": network, **server}
    world.configured(deployment={"target": "docker", "canary": True}, server=keys)
    deployed = world.deploy(GOOD)
    assert deployed.get("version") == 1, deployed
    publishing = relay.name("faulty") if network == "relayed" else world.record().handle
    container = server_container.find(engine, publishing)
    assert container is not None
    ports = {port: each[0]["HostIp"] for port, each in container.attrs["HostConfig"]["PortBindings"].items()}
    rest = "127.0.0.1" if server is TLS else "0.0.0.0"
    assert ports == {"8500/tcp": "0.0.0.0", "8501/tcp": rest}
    assert not [mount for mount in container.attrs["Mounts"] if mount["RW"]]
    if server is TLS:
        assert asked(world, 3.0) == expected(3.0, GOOD)


@pytest.mark.docker
def test_an_address_of_another_machine_is_told_first(world: World) -> None:
    """Before anything is published."""
    server_image.ensure(docker.from_env(), None, print)
    world.configured(deployment={"target": "docker"}, server={"address": "192.0.2.7", "insecure": True})
    assert "server.address 192.0.2.7 cannot be listened on" in world.deploy(GOOD)["message"]
    assert world.numbers() == []
