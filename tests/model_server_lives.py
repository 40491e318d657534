"""What the tests of lifecycles share: configs as text protos, and what a server says of its versions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import text_format
from model_server_fixtures import DEADLINE_SECONDS, NAME, RunningServer, expected, wait_until
from model_server_requests import TIMEOUT, floats, predict_request, spec, stub
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2, model_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

START, LOADING, AVAILABLE, UNLOADING, END = 10, 20, 30, 40, 50


def entry(name: str, base_path: Path | str, policy: str = "", labels: Mapping[str, int] | None = None) -> str:
    """Return one model of a config; `policy` is what stands in model_version_policy."""
    return "".join(
        [
            f'config {{ name: "{name}" base_path: "{base_path}" model_platform: "tensorflow" ',
            f"model_version_policy {{ {policy} }} " if policy else "",
            *(f'version_labels {{ key: "{key}" value: {value} }} ' for key, value in (labels or {}).items()),
            "} ",
        ]
    )


def config(*entries: str) -> str:
    """Return the text proto of a ModelServerConfig."""
    return "model_config_list { " + "".join(entries) + "}"


def reload_request(text: str, *metric_names: str) -> Any:
    """Return the request that asks for the config in `text`."""
    parsed = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    return model_management_pb2.ReloadConfigRequest(config=parsed, metric_names=metric_names)


def reload(server: RunningServer, text: str, *metric_names: str, timeout: float = TIMEOUT) -> Any:
    """Ask for the config in `text`, and return the answer."""
    service = model_service_pb2_grpc.ModelServiceStub(server.channel)
    return service.HandleReloadConfigRequest(reload_request(text, *metric_names), timeout=timeout)


def refusal(server: RunningServer, text: str, timeout: float = TIMEOUT) -> tuple[str, str]:
    """Ask for a config that is refused, and return code and message."""
    try:
        reload(server, text, timeout=timeout)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    raise AssertionError("the config was accepted")


def statuses(server: RunningServer, name: str = NAME) -> list[tuple[int, int, str]]:
    """Version, state and error message, in the order of the answer; empty for an unknown model."""
    try:
        answer = model_service_pb2_grpc.ModelServiceStub(server.channel).GetModelStatus(
            get_model_status_pb2.GetModelStatusRequest(model_spec=spec(name)), timeout=TIMEOUT
        )
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return []
    return [(v.version, v.state, v.status.error_message) for v in answer.model_version_status]


def available(server: RunningServer, name: str = NAME) -> list[int]:
    """Return the versions in service, highest first."""
    return [number for number, state, _ in statuses(server, name) if state == AVAILABLE]


def wait_for_available(server: RunningServer, numbers: list[int], name: str = NAME) -> None:
    """Wait until just these versions, highest first, are in service, and none is coming or going."""
    wait_until(
        lambda: (
            available(server, name) == numbers
            and all(state in (AVAILABLE, END) for _, state, _ in statuses(server, name))
        ),
        f"versions {numbers} of {name}",
        lambda: f"{statuses(server, name)}\n{server.log}",
        DEADLINE_SECONDS,
    )


def answer(
    server: RunningServer, name: str = NAME, version: int | None = None, label: str | None = None
) -> int:
    """Ask for a prediction, check it, and return the version that made it."""
    said = stub(server).Predict(
        predict_request(spec(name, version=version, label=label), x=floats(5)), timeout=TIMEOUT
    )
    number = int(said.model_spec.version.value)
    assert said.model_spec.name == name
    assert list(said.outputs["y"].float_val) == [expected(5.0, number)]
    return number


def inference_error(
    server: RunningServer, name: str = NAME, version: int | None = None, label: str | None = None
) -> tuple[str, str]:
    """Ask for what is not served, and return code and first line of the message."""
    try:
        answer(server, name, version, label)
    except grpc.RpcError as error:
        return error.code().name, error.details().splitlines()[0]
    raise AssertionError("it was answered")
