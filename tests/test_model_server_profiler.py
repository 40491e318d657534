"""ProfilerService on the gRPC port: TensorFlow's own client captures a trace."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from model_server_fixtures import RunningServer, StartServer

pytest_plugins = ["model_server_fixtures"]

# ruff: noqa: E402 (the protos import all of TensorFlow)
import tensorflow as tf
from model_server_requests import TIMEOUT, floats, predict_request, stub
from tensorflow.tsl.profiler.protobuf import profiler_options_pb2, xplane_pb2
from waiting import eventually

from model_server.api.grpc import profiler_service


def call(server: RunningServer, method: str, request: Any) -> Any:
    """Ask the service itself, without TensorFlow's client."""
    rpc = server.channel.unary_unary(f"/{profiler_service.SERVICE}/{method}")
    return rpc(request.SerializeToString(), timeout=TIMEOUT)


def profile_request(root: Path | str, session: str = "s", milliseconds: int = 100) -> Any:
    options = profiler_options_pb2.ProfileOptions(host_tracer_level=2, duration_ms=milliseconds)
    return profiler_service.MESSAGES["ProfileRequest"](
        opts=options, repository_root=str(root), session_id=session, host_name="here"
    )


def test_tensorflows_client_captures_a_trace(half_plus_two_process: RunningServer, tmp_path: Path) -> None:
    """Of the graph's runs, while requests are answered; TensorBoard reads the file."""
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            stub(half_plus_two_process).Predict(predict_request(x=floats(1)), timeout=TIMEOUT)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        tf.profiler.experimental.client.trace(
            f"grpc://127.0.0.1:{half_plus_two_process.port}", str(tmp_path), 300, num_tracing_attempts=10
        )
    finally:
        done.set()
        asking.join()
    (file,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    trace = xplane_pb2.XSpace.FromString(file.read_bytes())
    events = {each.name for plane in trace.planes for each in plane.event_metadata.values()}
    assert any("SessionRun" in name or "ExecutorState" in name for name in events), sorted(events)[:50]


def test_a_trace_can_be_ended_early(half_plus_two_process: RunningServer, tmp_path: Path) -> None:
    """Terminate: what was traced until then is written."""
    rpc = half_plus_two_process.channel.unary_unary(f"/{profiler_service.SERVICE}/Profile")
    tracing = rpc.future(profile_request(tmp_path, "long", 600_000).SerializeToString(), timeout=60)
    terminate = profiler_service.MESSAGES["TerminateRequest"](session_id="long")

    def ended() -> bool:
        call(half_plus_two_process, "Terminate", terminate)
        return bool(tracing.done())

    eventually(ended, TIMEOUT)
    assert tracing.code() is grpc.StatusCode.OK
    assert (tmp_path / "long" / "here.xplane.pb").exists()


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (profile_request("/tmp", "../s"), "INVALID_ARGUMENT", "session_id must be a name"),
        (profile_request(""), "INVALID_ARGUMENT", "repository_root is not set"),
        (profile_request("/tmp", milliseconds=0), "INVALID_ARGUMENT", "duration_ms must be from 1"),
        (profile_request("/proc/nowhere"), "FAILED_PRECONDITION", "cannot write the trace to /proc/nowhere"),
    ],
)
def test_what_cannot_be_traced(
    half_plus_two_process: RunningServer, request_: Any, code: str, message: str
) -> None:
    """The status says why; nothing is written outside of the session's directory."""
    with pytest.raises(grpc.RpcError) as caught:
        call(half_plus_two_process, "Profile", request_)
    assert caught.value.code().name == code
    assert message in caught.value.details()


def test_a_client_that_leaves_ends_its_trace(half_plus_two_process: RunningServer, tmp_path: Path) -> None:
    """And the next trace can begin."""
    rpc = half_plus_two_process.channel.unary_unary(f"/{profiler_service.SERVICE}/Profile")
    with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
        rpc(profile_request(tmp_path, "left", 600_000).SerializeToString(), timeout=0.2)

    def traced() -> bool:
        try:
            call(half_plus_two_process, "Profile", profile_request(tmp_path, "next"))
        except grpc.RpcError as error:
            return error.code() is not grpc.StatusCode.ALREADY_EXISTS
        return True

    eventually(traced, TIMEOUT)
    assert (tmp_path / "next" / "here.xplane.pb").exists()
    assert list((tmp_path / "left").iterdir()) == []


def test_the_service_can_be_turned_off(start_server: StartServer, models: Any, tmp_path: Path) -> None:
    """--enable_profiler=false."""
    models.publish(tmp_path, 1)
    server = start_server(tmp_path, "--enable_profiler=false")
    with pytest.raises(grpc.RpcError) as caught:
        call(server, "Profile", profile_request(tmp_path))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
