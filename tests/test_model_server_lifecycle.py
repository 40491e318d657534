"""The server's life: start, hot swap, withdrawal, broken and half-copied versions, drain and end."""

from __future__ import annotations

import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import grpc
import pytest
from free_ports import free_port
from grpc_health.v1 import health_pb2, health_pb2_grpc
from model_server_fixtures import NAME, Models, RunningServer, StartServer, expected, wait_until

pytest_plugins = ["model_server_fixtures"]

# ruff: noqa: E402 (the protos import all of TensorFlow)
from model_server_requests import TIMEOUT, floats, predict_request, spec, stub, turns_request
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

LOADING, AVAILABLE, END = 20, 30, 50
ONE_TRY = ("--max_num_load_retries=0",)


class Caller:
    """Asks in a closed loop, and keeps each answer's version and whether its number was right."""

    def __init__(self, server: RunningServer) -> None:
        self.versions: list[int] = []
        self.failures: list[str] = []
        self._stub = stub(server)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Caller:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join(TIMEOUT)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                answer = self._stub.Predict(predict_request(x=floats(5)), timeout=TIMEOUT)
            except grpc.RpcError as error:
                self.failures.append(f"{error.code()} {error.details()}")
                continue
            version = answer.model_spec.version.value
            if list(answer.outputs["y"].float_val) != [expected(5.0, version)]:
                self.failures.append(f"version {version} said {answer.outputs['y'].float_val}")
            self.versions.append(version)


def answering_version(server: RunningServer, version: int | None = None) -> int:
    answer = stub(server).Predict(predict_request(spec(version=version), x=floats(5)), timeout=TIMEOUT)
    number = int(answer.model_spec.version.value)
    assert list(answer.outputs["y"].float_val) == [expected(5.0, number)]
    return number


def statuses(server: RunningServer) -> list[tuple[int, int, str]]:
    """Version, state and error message, in the order of the answer."""
    answer = model_service_pb2_grpc.ModelServiceStub(server.channel).GetModelStatus(
        get_model_status_pb2.GetModelStatusRequest(model_spec=spec()), timeout=TIMEOUT
    )
    return [(v.version, v.state, v.status.error_message) for v in answer.model_version_status]


def state_of(server: RunningServer, version: int) -> int:
    return {number: state for number, state, _ in statuses(server)}.get(version, 0)


def wait_for_state(server: RunningServer, version: int, state: int) -> None:
    wait_until(
        lambda: state_of(server, version) == state,
        f"state {state} of version {version}",
        lambda: f"{statuses(server)}\n{server.log}",
    )


def truncate_variables(version: Path) -> None:
    next((version / "variables").glob("*.data-*")).write_bytes(b"")


def remove_variables(version: Path) -> None:
    shutil.rmtree(version / "variables")


def garble(version: Path) -> None:
    (version / "saved_model.pb").write_bytes(b"no SavedModel")


def test_swaps_and_withdrawals_fail_no_request(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """Versions rise under load without an error, and a withdrawn one gives way to the one below it."""
    models.publish(tmp_path, 1)
    server = start_server(tmp_path)
    with Caller(server) as caller:
        for version in (2, 3):
            models.publish(tmp_path, version)
            wait_for_state(server, version, AVAILABLE)
            wait_for_state(server, version - 1, END)
        assert caller.versions == sorted(caller.versions)
        assert answering_version(server) == 3
        (tmp_path / "3").rename(tmp_path / "3.withdrawn")
        wait_for_state(server, 3, END)
        assert answering_version(server) == 2
        assert statuses(server) == [(3, END, ""), (2, AVAILABLE, ""), (1, END, "")]
    assert caller.failures == []
    assert set(caller.versions) == {1, 2, 3}
    with pytest.raises(grpc.RpcError, match=rf"Servable not found for request: Specific\({NAME}, 3\)"):
        answering_version(server, 3)
    log = server.log
    assert log.index("version 2: available") < log.index("version 1: unloaded")
    assert server.stop() == 0


def test_broken_versions_leave_the_old_one_in_service(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """Each ends with its error in the status, and is loaded as soon as its files are whole."""
    models.publish(tmp_path, 1)
    server = start_server(tmp_path, *ONE_TRY)
    for version, damage, error in (
        (2, remove_variables, "variables are missing"),
        (3, truncate_variables, ""),
        (4, garble, "Can't parse"),
    ):
        broken = shutil.copytree(models.store / str(version), tmp_path / f"{version}.candidate")
        damage(broken)
        broken.rename(tmp_path / str(version))
        wait_for_state(server, version, END)
        number, _, message = statuses(server)[0]
        assert number == version
        assert message
        assert error in message
        assert answering_version(server) == 1
    shutil.copytree(models.store / "4", tmp_path / "4", dirs_exist_ok=True)
    wait_for_state(server, 4, AVAILABLE)
    wait_for_state(server, 1, END)
    assert answering_version(server) == 4


def test_a_broken_version_can_be_withdrawn_and_passed_over(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """While it is retried it is LOADING with its last error; withdrawn, it ends; the next one loads."""
    models.publish(tmp_path, 1)
    server = start_server(tmp_path, "--max_num_load_retries=1000", "--load_retry_interval_micros=100000")
    broken = shutil.copytree(models.store / "2", tmp_path / "2.candidate")
    garble(broken)
    broken.rename(tmp_path / "2")
    server.wait_for_log("version 2: failed to load, try 3 of 1001")
    version, state, message = statuses(server)[0]
    assert (version, state) == (2, LOADING)
    assert "Can't parse" in message
    (tmp_path / "2").rename(tmp_path / "2.withdrawn")
    wait_for_state(server, 2, END)
    assert answering_version(server) == 1
    models.publish(tmp_path, 3)
    wait_for_state(server, 3, AVAILABLE)
    assert answering_version(server) == 3


def test_a_copy_under_way_is_not_a_version(models: Models, start_server: StartServer, tmp_path: Path) -> None:
    """Without saved_model.pb a directory is not looked at; neither are other names, or files."""
    models.publish(tmp_path, 1)
    shutil.copytree(models.store / "2", tmp_path / "temp-2")
    shutil.copytree(models.store / "2", tmp_path / "2.denied")
    (tmp_path / "9").touch()
    copied = shutil.copytree(models.store / "2" / "variables", tmp_path / "4" / "variables").parent
    server = start_server(tmp_path)
    models.publish(tmp_path, 3)
    wait_for_state(server, 3, AVAILABLE)
    assert [version for version, _, _ in statuses(server)] == [3, 1]
    shutil.copy(models.store / "4" / "saved_model.pb", copied)
    wait_for_state(server, 4, AVAILABLE)  # the weights of version 2, in the place of version 4
    wait_for_state(server, 3, END)


def test_a_base_path_that_vanishes_unloads_nothing(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """Neither a missing base path nor an empty one ends the service; each is logged once."""
    base_path = tmp_path / "models"
    models.publish(base_path, 1)
    server = start_server(base_path)
    base_path.rename(tmp_path / "elsewhere")
    server.wait_for_log("Could not find base path")
    assert answering_version(server) == 1
    (tmp_path / "elsewhere").rename(base_path)
    models.publish(base_path, 2)
    wait_for_state(server, 2, AVAILABLE)
    wait_for_state(server, 1, END)
    for version in (1, 2):
        (base_path / str(version)).rename(base_path / f"{version}.withdrawn")
    log = server.wait_for_log("No versions of servable")
    assert "Version 2 stays in service" in log
    assert log.count("Could not find base path") == 1
    assert answering_version(server) == 2


def test_the_server_waits_for_its_first_version(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """No port is open while the base path is missing or empty."""
    base_path = tmp_path / "models"
    server = start_server(base_path, wait=False)
    server.wait_for_log("Could not find base path")
    base_path.mkdir()
    server.wait_for_log("No versions of servable")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT)
    models.publish(base_path, 1)
    server.wait_until_ready()
    assert answering_version(server) == 1


def test_a_first_version_that_does_not_load_ends_the_start(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """Exit 255 with the official text, after all tries."""
    garble(models.publish(tmp_path, 1))
    server = start_server(
        tmp_path, "--max_num_load_retries=1", "--load_retry_interval_micros=1000", wait=False
    )
    assert server.exit_code() == 255
    assert server.log.count("failed to load, try") == 2
    assert (
        "Failed to start server. Error: UNKNOWN: 1 servable(s) did not become available: "
        f"{{{{{{name: {NAME} version: 1}} due to error: DATA_LOSS: Can't parse"
    ) in server.log


def test_tags_choose_the_graph(models: Models, start_server: StartServer, tmp_path: Path) -> None:
    """A tag set that the SavedModel lacks is named in the error."""
    models.publish(tmp_path, 1)
    server = start_server(tmp_path, "--saved_model_tags=serve,gpu", *ONE_TRY, wait=False)
    assert server.exit_code() == 255
    assert "Could not find meta graph def matching supplied tags: { gpu serve }." in server.log


def test_sigterm_finishes_what_is_in_flight(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """Requests under way are answered over gRPC and REST; health says NOT_SERVING, also per model; exit 0."""
    models.publish(tmp_path, 1)
    server = start_server(tmp_path)
    predict = stub(server).Predict
    started = time.monotonic()
    predict(turns_request(20_000), timeout=TIMEOUT)
    per_turn = (time.monotonic() - started) / 20_000
    health = health_pb2_grpc.HealthStub(server.channel)
    asked = [health_pb2.HealthCheckRequest(service=service) for service in ("", NAME)]
    watches = [health.Watch(request, timeout=TIMEOUT) for request in asked]
    for watch in watches:
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    enough = int(0.7 / per_turn)
    slow = predict.future(turns_request(enough), timeout=60)
    rest: list[object] = []
    body = {"signature_name": "turns", "inputs": enough}
    poster = threading.Thread(target=lambda: rest.append(server.post(f"/v1/models/{NAME}:predict", body)))
    poster.start()
    predict(predict_request(x=floats(1)), timeout=TIMEOUT)  # the slow ones are on their way by now
    time.sleep(0.2)
    server.process.send_signal(signal.SIGTERM)
    for watch in watches:
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert list(slow.result().outputs["turned"].int64_val) == [enough]
    poster.join(TIMEOUT)
    assert rest == [(200, {"outputs": enough})]
    assert server.exit_code() == 0
    assert "stopped" in server.log


def test_what_outlives_the_grace_period_is_cut_off(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """MODEL_SERVER_DRAIN_SECONDS bounds the drain; the exit code is 0 all the same."""
    models.publish(tmp_path, 1)
    server = start_server(tmp_path, MODEL_SERVER_DRAIN_SECONDS="0.3")
    predict = stub(server).Predict
    endless = predict.future(turns_request(10**12), timeout=60)
    predict(predict_request(x=floats(1)), timeout=TIMEOUT)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(TIMEOUT) == 0
    assert endless.code() is not grpc.StatusCode.OK


def test_a_second_signal_ends_the_server_at_once(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """Without waiting for what is in flight."""
    models.publish(tmp_path, 1)
    server = start_server(tmp_path)
    predict = stub(server).Predict
    endless = predict.future(turns_request(10**12), timeout=60)
    predict(predict_request(x=floats(1)), timeout=TIMEOUT)
    server.process.send_signal(signal.SIGTERM)
    server.wait_for_log("draining")
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(5) == 128 + signal.SIGINT
    endless.cancel()


def test_sigterm_is_heard_while_tensorflow_is_imported(start_server: StartServer, tmp_path: Path) -> None:
    """As PID 1 of a container it would otherwise be lost; here it must not be the signal that kills."""
    server = start_server(tmp_path, wait=False)
    handled = f"/proc/{server.process.pid}/status"

    def catches_sigterm() -> bool:
        caught = next(line for line in Path(handled).read_text().splitlines() if line.startswith("SigCgt"))
        return bool(int(caught.split()[1], 16) & (1 << (signal.SIGTERM - 1)))

    wait_until(catches_sigterm, "a handler of SIGTERM", lambda: server.log)
    server.process.send_signal(signal.SIGTERM)
    assert server.exit_code() == 0


def test_sigterm_before_the_first_version_ends_the_server(start_server: StartServer, tmp_path: Path) -> None:
    """Exit 0: it was told to stop."""
    server = start_server(tmp_path / "nowhere", wait=False)
    server.wait_for_log("Could not find base path")
    server.process.send_signal(signal.SIGTERM)
    assert server.exit_code() == 0


@pytest.mark.parametrize("flag", ["--port", "--rest_api_port"])
def test_a_port_in_use_is_named(start_server: StartServer, tmp_path: Path, flag: str) -> None:
    """The server refuses to start, before it loads anything."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = start_server(tmp_path, f"{flag}={port}", wait=False)
        assert server.exit_code() == 255
    assert (
        f"Failed to start server. Error: UNAVAILABLE: cannot listen on 127.0.0.1:{port} ({flag})"
        in server.log
    )


def test_two_servers_do_not_share_a_port(models: Models, start_server: StartServer, tmp_path: Path) -> None:
    """Not even through SO_REUSEPORT, where each would get half of the requests."""
    models.publish(tmp_path, 1)
    first = start_server(tmp_path)
    second = start_server(tmp_path, f"--port={first.port}", wait=False)
    assert second.exit_code() == 255
    assert answering_version(first) == 1


def test_equal_ports_leave_grpc_alone(models: Models, start_server: StartServer, tmp_path: Path) -> None:
    """The official server serves gRPC and logs that REST is not exported."""
    models.publish(tmp_path, 1)
    port = free_port()
    server = start_server(tmp_path, f"--port={port}", f"--rest_api_port={port}", wait=False)
    server.wait_for_log("REST is not served")
    server.wait_for_log("listening")
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (("--port=0",), 255,
         "Failed to start server. Error: INVALID_ARGUMENT: At least one of server_options.grpc_port or "
         "server_options.grpc_socket_path must be set."),
        (("--model_base_path=",), 255,
         "Failed to start server. Error: INVALID_ARGUMENT: Both server_options.model_base_path and "
         "server_options.model_config_file are empty!"),
        (("--mixed_precision=bfloat16",), 255,
         "Failed to start server. Error: UNIMPLEMENTED: not supported here: --mixed_precision ("),
        (("--rest_api_num_threads=many",), 255, "usage: model_server"),
        (("--help",), 255, "usage: model_server"),
        (("--version",), 0, "TensorFlow ModelServer: 2.15.1"),
    ],
)  # fmt: skip
def test_command_lines_that_start_no_server(
    start_server: StartServer, tmp_path: Path, flags: tuple[str, ...], code: int, text: str
) -> None:
    """Exit code and text of each."""
    server = start_server(tmp_path, *flags, wait=False)
    assert server.exit_code() == code
    assert text in server.log


def test_an_unknown_argument_is_reported_and_passed_over(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """As the official server does; gRPC also listens on a unix socket if told to."""
    models.publish(tmp_path, 1)
    socket_path = tmp_path / "grpc.sock"
    server = start_server(tmp_path, "--no_such_flag=1", f"--grpc_socket_path={socket_path}")
    assert "unknown argument: --no_such_flag=1\nusage: model_server" in server.log
    with grpc.insecure_channel(f"unix:{socket_path}") as channel:
        answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(
            predict_request(x=floats(1)), timeout=TIMEOUT
        )
    assert list(answer.outputs["y"].float_val) == [2.5]
