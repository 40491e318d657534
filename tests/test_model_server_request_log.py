"""Sampled requests, logged in the form of warmup files."""

from __future__ import annotations

import errno
import shutil
import stat
import threading
import time
from pathlib import Path

import pytest
from model_server_fixtures import NAME, Models, StartServer, expected

pytest_plugins = ["model_server_fixtures"]

# ruff: noqa: E402 (the protos import all of TensorFlow)
import tensorflow as tf
from google.protobuf import text_format
from model_server_requests import (
    TIMEOUT,
    classify_request,
    error_of,
    floats,
    ints,
    predict_request,
    regress_request,
    stub,
)
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
from tensorflow_serving.config import logging_config_pb2
from waiting import eventually

from model_server.base.status import StatusError
from model_server.observability import prediction_logs, request_log
from model_server.observability.request_log import RequestLog, RequestLogs, Sampling

REQUEST = predict_request(x=floats(1)).SerializeToString()
RESPONSE = predict_pb2.PredictResponse().SerializeToString()


def logged(directory: Path) -> list[prediction_log_pb2.PredictionLog]:
    """Every record under `directory`, in the order of the files' numbers."""
    files = sorted(directory.glob("*.tfrecord"), key=lambda path: int(path.stem.rsplit("-", 1)[1]))
    return [
        prediction_log_pb2.PredictionLog.FromString(record.numpy())
        for file in files
        for record in tf.data.TFRecordDataset(str(file))
    ]


def test_a_log_is_a_warmup_file(models: Models, start_server: StartServer, tmp_path: Path) -> None:
    """What one server has logged, the next one replays, unchanged; failures are not logged."""
    base_path, logs = tmp_path / "models", tmp_path / "logs"
    models.publish(base_path, 1)
    server = start_server(
        base_path, MODEL_SERVER_REQUEST_LOG=str(logs / "requests"), MODEL_SERVER_REQUEST_LOG_RATE="1"
    )
    answer = stub(server).Predict(predict_request(x=floats(2)), timeout=TIMEOUT)
    stub(server).Classify(classify_request("classify", 1), timeout=TIMEOUT)
    stub(server).Regress(regress_request("regress", 1, 2), timeout=TIMEOUT)
    error_of(stub(server).Predict, predict_request(x=ints(1)))
    assert server.stop() == 0
    (file,) = logs.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    records = {record.WhichOneof("log_type"): record for record in logged(logs)}
    assert sorted(records) == ["classify_log", "predict_log", "regress_log"]
    assert records["predict_log"].predict_log.response == answer
    assert records["predict_log"].log_metadata.model_spec.version.value == 1
    assert records["predict_log"].log_metadata.sampling_config.sampling_rate == 1

    candidate = models.publish(base_path, 2).rename(base_path / "2.warmed")
    (candidate / "assets.extra").mkdir()
    shutil.copy(file, candidate / "assets.extra" / "tf_serving_warmup_requests")
    candidate.rename(base_path / "2")
    server = start_server(base_path)
    assert "Number of warmup records read: 3." in server.log
    answer = stub(server).Predict(predict_request(x=floats(2)), timeout=TIMEOUT)
    assert list(answer.outputs["y"].float_val) == [expected(2, 2)]


def test_files_are_no_larger_than_a_warmup_file_and_not_endless(tmp_path: Path) -> None:
    """A new file after 1,000 records, or after so many megabytes; the oldest go."""
    log = RequestLog(Sampling(tmp_path / "by_count", 1.0, files=2))
    for _ in range(2 * prediction_logs.MAX_RECORDS + 1):
        log._write(REQUEST)
    log.close()
    names = sorted(path.stem.rsplit("-", 1)[1] for path in tmp_path.glob("by_count*"))
    assert names == ["2", "3"]
    log = RequestLog(Sampling(tmp_path / "by_size", 1.0, file_megabytes=0.001))
    for _ in range(3):
        log._write(b"x" * 600)
    log.close()
    assert len(list(tmp_path.glob("by_size*"))) == 3


def test_a_rate_of_zero_logs_nothing(tmp_path: Path) -> None:
    """And makes no file."""
    log = RequestLog(Sampling(tmp_path / "x", 0.0))
    for _ in range(100):
        log.offer("Predict", REQUEST, RESPONSE)
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_costs_the_log_only(tmp_path: Path) -> None:
    """A directory that cannot be written to ends the logging, not the server."""
    (tmp_path / "file").touch()
    log = RequestLog(Sampling(tmp_path / "file" / "x", 1.0))
    log.offer("Predict", REQUEST, RESPONSE)
    eventually(lambda: log.sampling.rate == 0.0, 10)
    log.offer("Predict", REQUEST, RESPONSE)
    log.close()


def test_a_full_queue_that_nobody_empties_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer ended on a full disk, or waits for one that hangs: close() returns, as SIGTERM needs it."""
    arrived, goes_on = threading.Event(), threading.Event()

    def full(*_: object) -> None:
        arrived.set()
        goes_on.wait(30)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RequestLog, "_write", full)
    log = RequestLog(Sampling(tmp_path / "x", 1.0))
    log.offer("Predict", REQUEST, RESPONSE)
    assert arrived.wait(10)
    while not log._queue.full():
        log.offer("Predict", REQUEST, RESPONSE)
    began = time.monotonic()
    log.close(seconds=0.2)
    assert time.monotonic() - began < 5
    goes_on.set()
    log._thread.join(10)
    assert not log._thread.is_alive()
    log.close()
    assert time.monotonic() - began < 20


def test_models_may_have_logs_of_their_own(tmp_path: Path) -> None:
    """By logging_config of a model config file; a change takes effect, what stays the same goes on."""
    logs = RequestLogs()
    config = text_format.Parse(
        f'log_collector_config {{ type: "tfrecord", filename_prefix: "{tmp_path}/a" }} '
        "sampling_config { sampling_rate: 1 }",
        logging_config_pb2.LoggingConfig(),
    )
    logs.configure({"a": config})
    first = logs.by_model["a"]
    logs.offer("Predict", "a", REQUEST, RESPONSE)
    logs.offer("Predict", NAME, REQUEST, RESPONSE)
    logs.configure({"a": config})
    assert logs.by_model["a"] is first
    logs.configure({})
    assert logs.active is False
    assert len(logged(tmp_path)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('log_collector_config { type: "kafka" }', 'must be "tfrecord", found "kafka"'),
        ("sampling_config { sampling_rate: 1 }", "filename_prefix is not set"),
        (
            'log_collector_config { filename_prefix: "x" } sampling_config { sampling_rate: 2 }',
            "sampling_rate must be from 0 to 1, found 2",
        ),
    ],
)
def test_a_logging_config_that_cannot_be_honoured_is_an_error(text: str, message: str) -> None:
    """It names the model."""
    config = text_format.Parse(text, logging_config_pb2.LoggingConfig())
    with pytest.raises(StatusError, match=f"Model m: .*{message}"):
        request_log.sampling_of("m", config)
