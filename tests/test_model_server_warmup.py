"""Warmup files: replayed before a version is available; one that fails keeps its version out of service."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from model_server_fixtures import NAME, Models, RunningServer, StartServer

pytest_plugins = ["model_server_fixtures"]

# ruff: noqa: E402 (the protos import all of TensorFlow)
import tensorflow as tf
from model_server_requests import (
    TIMEOUT,
    asked,
    classify_request,
    floats,
    ints,
    predict_request,
    regress_request,
    spec,
    stub,
)
from tensorflow_serving.apis import inference_pb2, prediction_log_pb2, session_service_pb2

PredictionLog = prediction_log_pb2.PredictionLog
MONITORING = "prometheus_config { enable: true }"


def predict_log(**inputs: Any) -> Any:
    """Of another model and version: only the signature counts."""
    request = predict_request(spec("another_model", version=77), **(inputs or {"x": floats(1)}))
    return PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))


def multi_inference_log() -> Any:
    task = inference_pb2.InferenceTask(
        model_spec=spec(signature="classify"), method_name="tensorflow/serving/classify"
    )
    request = inference_pb2.MultiInferenceRequest(tasks=[task], input=asked(1))
    return PredictionLog(multi_inference_log=prediction_log_pb2.MultiInferenceLog(request=request))


def every_kind() -> list[Any]:
    classify = prediction_log_pb2.ClassifyLog(request=classify_request("classify", 1))
    regress = prediction_log_pb2.RegressLog(request=regress_request("regress", 1))
    return [
        predict_log(),
        PredictionLog(classify_log=classify),
        PredictionLog(regress_log=regress),
        multi_inference_log(),
        PredictionLog(),  # no kind at all is skipped
    ]


def publish(models: Models, base_path: Path, version: int, records: Iterable[Any] | bytes) -> Path:
    """Make a version visible that has a warmup file: records, or bytes that are none."""
    candidate = models.publish(base_path, version).rename(base_path / f"{version}.warmed")
    file = candidate / "assets.extra" / "tf_serving_warmup_requests"
    file.parent.mkdir()
    if isinstance(records, bytes):
        file.write_bytes(records)
    else:
        with tf.io.TFRecordWriter(str(file)) as writer:
            for record in records:
                writer.write(record if isinstance(record, bytes) else record.SerializeToString())
    return candidate.rename(base_path / str(version))


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warmup")


@pytest.fixture(scope="module")
def warmed(models: Models, start_server: StartServer, base_path: Path) -> RunningServer:
    """A server whose first version has a record of every kind; versions above it do not load."""
    publish(models, base_path, 1, every_kind())
    (base_path / "monitoring.cfg").write_text(MONITORING)
    return start_server(
        base_path,
        f"--monitoring_config_file={base_path}/monitoring.cfg",
        "--num_request_iterations_for_warmup=3",
        "--max_num_load_retries=0",
    )


def test_records_of_every_kind_are_replayed(warmed: RunningServer) -> None:
    """Before the version is available, and under the official metric's name."""
    log = warmed.log
    assert "Number of warmup records read: 5." in log
    assert log.index("Number of warmup records read") < log.index("version 1: available")
    page = warmed.raw("GET", "/monitoring/prometheus/metrics", None)[2].decode()
    (count,) = [
        line
        for line in page.splitlines()
        if line.startswith(":tensorflow:serving:model_warmup_latency_count")
    ]
    assert 'status="OK"' in count
    assert count.endswith("} 1")


@pytest.mark.parametrize(
    ("version", "records", "message"),
    [
        (2, [predict_log(), predict_log(x=ints(1))], "Expects arg[0] to be float but int32 is provided"),
        (3, [predict_log()] * 1001, "Number of warmup records exceeds the maximum (1000) at "),
        (4, b"these are no records at all", "Please verify your warmup data is in TFRecord format."),
        (
            5,
            [
                PredictionLog(
                    session_run_log=prediction_log_pb2.SessionRunLog(
                        request=session_service_pb2.SessionRunRequest(feed=[])
                    )
                )
            ],
            "Unsupported log_type for warmup: 5",
        ),
    ],
    ids=["failing request", "too many", "no records", "session run"],
)
def test_a_bad_warmup_file_fails_the_load(
    warmed: RunningServer, models: Models, version: int, records: Any, message: str
) -> None:
    """With the official text in the status; the version before stays in service."""
    base_path = Path(warmed.log.split("loading from ")[1].split("/1\n")[0])
    publish(models, base_path, version, records)
    warmed.wait_for_log(f"version {version}: failed to load")
    status = warmed.get(f"/v1/models/{NAME}/versions/{version}")[1]["model_version_status"][0]
    assert status["state"] == "END"
    assert message in status["status"]["error_message"]
    answer = stub(warmed).Predict(predict_request(x=floats(1)), timeout=TIMEOUT)
    assert answer.model_spec.version.value == 1


def test_warmup_can_be_turned_off(models: Models, start_server: StartServer, tmp_path: Path) -> None:
    """--enable_model_warmup=false: the file is not even read."""
    publish(models, tmp_path, 1, b"no records")
    server = start_server(tmp_path, "--enable_model_warmup=false")
    assert "warmup data" not in server.log


def test_a_record_that_is_no_prediction_log(tmp_path: Path) -> None:
    """Says so, and which file it is."""
    from model_server.base import flags
    from model_server.base.status import StatusError
    from model_server.loading import warmup

    options = flags.parse([], {}).options
    file = tmp_path / "assets.extra" / "tf_serving_warmup_requests"
    file.parent.mkdir()
    with tf.io.TFRecordWriter(str(file)) as writer:
        writer.write(b"\xff\xff not a proto")
    with pytest.raises(StatusError, match=r"Failed to parse warmup record: .* from .*warmup_requests"):
        warmup.replay(None, tmp_path, options)  # type: ignore[arg-type]
