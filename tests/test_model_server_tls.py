"""TLS and mutual TLS by --ssl_config_file, on TCP and UNIX sockets, for gRPC and, on request, REST."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
import pytest
from certificates import Authority, Identity, ssl_config
from model_server_fixtures import NAME, Models, RunningServer, StartServer, expected, open_channel

pytest_plugins = ["model_server_fixtures"]

# ruff: noqa: E402 (the protos import all of TensorFlow)
from model_server_requests import TIMEOUT, floats, predict_request
from tensorflow_serving.apis import prediction_service_pb2_grpc

AUTHORITY = Authority("the authority of this test")
STRANGER = Authority("an authority that nobody trusts")
SERVER = AUTHORITY.identity("server")
CLIENT = AUTHORITY.identity("client")


def credentials(authority: Authority = AUTHORITY, client: Identity | None = None) -> grpc.ChannelCredentials:
    key = client.key.encode() if client else None
    chain = client.certificate.encode() if client else None
    return grpc.ssl_channel_credentials(authority.certificate.encode(), key, chain)


def ask(channel: grpc.Channel, x: float = 2.0) -> float:
    predict = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
    return float(predict(predict_request(x=floats(x)), timeout=TIMEOUT).outputs["y"].float_val[0])


def refusal(address: str, credentials: grpc.ChannelCredentials | None) -> str:
    """Ask once; the code of the failure."""
    with open_channel(address, credentials) as channel, pytest.raises(grpc.RpcError) as caught:
        ask(channel)
    return str(caught.value.code().name)


@pytest.fixture(scope="module")
def base_path(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls")
    models.publish(path, 1)
    return path


@pytest.fixture(scope="module")
def mutual(base_path: Path, start_server: StartServer) -> RunningServer:
    """A server that wants to see a certificate of AUTHORITY, over TCP, a UNIX socket and HTTPS."""
    config = ssl_config(base_path / "ssl.cfg", SERVER, authority=AUTHORITY.certificate, verify=True)
    return start_server(
        base_path,
        f"--ssl_config_file={config}",
        f"--grpc_socket_path={base_path}/grpc.sock",
        credentials=credentials(client=CLIENT),
        MODEL_SERVER_REST_TLS="true",
    )


def test_the_health_check_knows_its_way_round_tls(
    mutual: RunningServer, base_path: Path, start_server: StartServer
) -> None:
    """The image's HEALTHCHECK has no certificate to show: it asks /readyz, unless that has TLS too."""
    config = ssl_config(base_path / "health.cfg", SERVER, authority=AUTHORITY.certificate, verify=True)
    plain = start_server(base_path, f"--ssl_config_file={config}", credentials=credentials(client=CLIENT))
    assert health_check(plain) == (0, "SERVING")
    assert health_check(mutual)[0] == 1


def health_check(server: RunningServer) -> tuple[int, str]:
    ports = {"MODEL_SERVER_PORT": str(server.port), "MODEL_SERVER_REST_PORT": str(server.rest_port)}
    done = subprocess.run(
        [sys.executable, "-m", "model_server.processes.health"],
        env={**os.environ, **ports},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout.strip()


def test_tls_without_client_certificates(base_path: Path, tmp_path: Path, start_server: StartServer) -> None:
    """The client checks the server; nobody asks for the client's. REST stays plain, as officially."""
    config = ssl_config(tmp_path / "ssl.cfg", SERVER)
    server = start_server(base_path, f"--ssl_config_file={config}", credentials=credentials())
    assert ask(server.channel) == expected(2.0)
    assert refusal(f"127.0.0.1:{server.port}", None) == "UNAVAILABLE"
    assert refusal(f"127.0.0.1:{server.port}", credentials(STRANGER)) == "UNAVAILABLE"
    assert server.get(f"/v1/models/{NAME}")[0] == 200


def test_mutual_tls_answers_those_whom_its_authority_signed(mutual: RunningServer) -> None:
    """A client of that authority is answered."""
    assert ask(mutual.channel) == expected(2.0)


@pytest.mark.parametrize("client", [None, STRANGER.identity("stranger")], ids=["none", "a stranger's"])
def test_mutual_tls_refuses_all_others(mutual: RunningServer, client: Identity | None) -> None:
    """No certificate, and one of another authority."""
    assert refusal(f"127.0.0.1:{mutual.port}", credentials(client=client)) == "UNAVAILABLE"


def test_the_unix_socket_has_the_same_credentials(mutual: RunningServer, base_path: Path) -> None:
    """TLS there too, as in the official server."""
    address = f"unix:{base_path}/grpc.sock"
    options = [("grpc.ssl_target_name_override", "localhost")]
    with grpc.secure_channel(address, credentials(client=CLIENT), options) as channel:
        assert ask(channel) == expected(2.0)
    assert refusal(address, None) == "UNAVAILABLE"


def test_rest_speaks_tls_on_request(mutual: RunningServer) -> None:
    """MODEL_SERVER_REST_TLS: the same key, certificate and demands for REST."""
    address = f"https://127.0.0.1:{mutual.rest_port}/v1/models/{NAME}"
    trusting = ssl.create_default_context(cadata=AUTHORITY.certificate)
    with pytest.raises((OSError, ssl.SSLError)):
        urllib.request.urlopen(address, timeout=TIMEOUT, context=trusting).read()
    with pytest.raises(OSError, match=r"reset|closed|Remote end|Empty"):
        urllib.request.urlopen(address.replace("https", "http"), timeout=TIMEOUT).read()


def test_rest_answers_a_client_with_a_certificate(mutual: RunningServer, tmp_path: Path) -> None:
    """One connection that never says a word does not hold up the others."""
    for name, text in (("key", CLIENT.key), ("certificate", CLIENT.certificate)):
        (tmp_path / name).write_text(text)
    context = ssl.create_default_context(cadata=AUTHORITY.certificate)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    with socket.create_connection(("127.0.0.1", mutual.rest_port)):
        address = f"https://127.0.0.1:{mutual.rest_port}/v1/models/{NAME}"
        with urllib.request.urlopen(address, timeout=TIMEOUT, context=context) as answer:
            status = json.load(answer)
    assert status["model_version_status"][0]["state"] == "AVAILABLE"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("server_key: 'key.pem' server_cert: 'cert.pem'", "server_key must hold PEM text"),
        ("server_password: 'x'", "Invalid protobuf file"),
    ],
    ids=["paths", "unknown field"],
)
def test_a_bad_ssl_config_ends_the_start(
    base_path: Path, tmp_path: Path, start_server: StartServer, text: str, message: str
) -> None:
    """With exit code 255 and the reason, where the official server crashes."""
    (tmp_path / "ssl.cfg").write_text(text)
    server = start_server(base_path, f"--ssl_config_file={tmp_path}/ssl.cfg", wait=False)
    assert server.exit_code() == 255
    assert message in server.log
    assert "Traceback" not in server.log


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    """Before any port is opened; no part of the key is in the message."""
    from model_server.base import tls
    from model_server.base.status import StatusError

    mixed = Identity(CLIENT.key, SERVER.certificate)
    with pytest.raises(StatusError, match=r"--ssl_config_file: .*KEY_VALUES_MISMATCH"):
        tls.read(str(ssl_config(tmp_path / "ssl.cfg", mixed)))
    assert tls.read(str(ssl_config(tmp_path / "good.cfg", SERVER))).client_verify is False
    with pytest.raises(StatusError, match="client_verify needs custom_ca"):
        tls.read(str(ssl_config(tmp_path / "no_ca.cfg", SERVER, verify=True)))
    with pytest.raises(StatusError, match="No such file or directory"):
        tls.read(str(tmp_path / "missing.cfg"))
