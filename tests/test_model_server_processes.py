"""Several processes on one port: one answer to every question, and swaps at one instant for all of them."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from model_server_fixtures import NAME, Models, RunningServer, StartServer, expected
from model_server_requests import TIMEOUT, floats, predict_request, spec
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)
from waiting import eventually

pytest_plugins = ["model_server_fixtures"]


@pytest.fixture
def pair(models: Models, start_server: StartServer, tmp_path: Path) -> RunningServer:
    """A lead and one worker, serving version 1."""
    models.publish(tmp_path, 1)
    server = start_server(tmp_path, MODEL_SERVER_PROCESSES="2")
    server.wait_for_log("listening")
    return server


def channels(server: RunningServer, count: int = 16) -> list[grpc.Channel]:
    """Connections of their own: the kernel gives each to one of the processes."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    return [grpc.insecure_channel(f"127.0.0.1:{server.port}", options=options) for _ in range(count)]


def workers(server: RunningServer) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


def ask(channel: grpc.Channel, x: float = 2.0) -> tuple[float, int]:
    """The answer to x, and the version that gave it."""
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    response = stub.Predict(predict_request(x=floats(x)), timeout=TIMEOUT, wait_for_ready=True)
    return response.outputs["y"].float_val[0], response.model_spec.version.value


def test_swaps_are_seen_everywhere_at_once(pair: RunningServer, models: Models, tmp_path: Path) -> None:
    """On whatever connection one asks next, the version never goes back, and no request fails."""
    opened, seen, wrong = channels(pair), [1], []
    stop = threading.Event()

    def look(offset: int) -> None:
        turn = offset
        while not stop.is_set():
            before = max(seen)
            value, version = ask(opened[turn % len(opened)])
            if version < before or value != expected(2.0, version):
                wrong.append((before, version, value))
            seen.append(version)
            turn += 1

    threads = [threading.Thread(target=look, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    try:
        for version in (2, 3, 4):
            models.publish(tmp_path, version)
            eventually(lambda version=version: max(seen) == version)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert {version for _, version in map(ask, opened)} == {4}


def test_a_killed_worker_is_replaced(pair: RunningServer) -> None:
    """What it was asked fails with UNAVAILABLE, and what is asked again is answered; never wrongly."""
    (worker,) = workers(pair)
    worker.kill()
    replaced = eventually(lambda: [each for each in workers(pair) if each.pid != worker.pid])
    pair.wait_for_log("a new one starts")
    assert [ask(channel) for channel in channels(pair)] == [(expected(2.0), 1)] * 16
    assert replaced


def test_without_the_lead_nobody_answers(pair: RunningServer) -> None:
    """A worker that nobody tells of swaps would go on serving what is old."""
    (worker,) = workers(pair)
    os.kill(pair.process.pid, signal.SIGKILL)
    pair.process.wait()
    eventually(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


def test_sigterm_ends_all(pair: RunningServer) -> None:
    """With exit code 0, and no worker left behind."""
    (worker,) = workers(pair)
    assert pair.stop() == 0
    assert not worker.is_running()


def test_sigusr1_hands_the_port_over(models: Models, start_server: StartServer, tmp_path: Path) -> None:
    """Two processes leave the port to two others, with exit code 0: callers of both see no failure."""
    models.publish(tmp_path, 1)
    shared = {"MODEL_SERVER_PROCESSES": "2", "MODEL_SERVER_SHARE_PORTS": "true"}
    old = start_server(tmp_path, "--grpc_channel_arguments=grpc.max_connection_age_ms=1000", **shared)
    old.wait_for_log("listening")
    new = start_server(tmp_path, f"--port={old.port}", wait=False, **shared)
    new.wait_for_log("listening")
    answers: list[tuple[float, int]] = []
    failures: list[grpc.RpcError] = []
    stop = threading.Event()

    def look(channel: grpc.Channel) -> None:
        while not stop.is_set():
            try:
                answers.append(ask(channel))
            except grpc.RpcError as error:
                failures.append(error)

    threads = [threading.Thread(target=look, args=(channel,)) for channel in channels(old, 8)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: len(answers) > 100)
        gone = workers(old)
        old.process.send_signal(signal.SIGUSR1)
        assert old.process.wait(60) == 0
        asked = len(answers)
        eventually(lambda: len(answers) > asked + 100)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == [], old.log
    assert set(answers) == {(expected(2.0), 1)}
    assert gone and not any(each.is_running() for each in gone)
    assert "handed over" in old.log


def test_everything_is_answered_on_every_connection(pair: RunningServer) -> None:
    """Status, metadata, health, errors: by whichever process a client has come to."""
    for channel in channels(pair):
        status = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(
            get_model_status_pb2.GetModelStatusRequest(model_spec=spec()), timeout=TIMEOUT
        )
        assert [each.version for each in status.model_version_status] == [1]
        metadata = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=spec(), metadata_field=["signature_def"]
        )
        stub: Any = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        assert stub.GetModelMetadata(metadata, timeout=TIMEOUT).model_spec.version.value == 1
        health = health_pb2_grpc.HealthStub(channel)
        watched = health.Watch(health_pb2.HealthCheckRequest(service=NAME), timeout=TIMEOUT)
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        watched.cancel()
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(predict_request(spec("nobody"), x=floats(1)), timeout=TIMEOUT)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_metrics_are_those_of_all_processes(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """Whoever answers, the page counts it."""
    base_path = tmp_path / "models"
    models.publish(base_path, 1)
    monitoring = tmp_path / "monitoring.txt"
    monitoring.write_text("prometheus_config { enable: true }")
    server = start_server(base_path, f"--monitoring_config_file={monitoring}", MODEL_SERVER_PROCESSES="2")
    server.wait_for_log("listening")
    for channel in channels(server):
        ask(channel)
    _, _, page = server.raw("GET", "/monitoring/prometheus/metrics", None)
    assert f':tensorflow:serving:request_count{{model_name="{NAME}",status="OK"}} 16'.encode() in page
