"""Golden requests: what is recorded, what travels, and what a candidate must answer."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf
from pipelines import exported_digits, run_of, trained_digits, written
from prefect.logging import disable_run_logger
from tensorflow_serving.apis import prediction_log_pb2

from configs.loading.errors import ConfigError
from configs.schema.pipeline import GoldenConfig
from flows.command import record_command
from tasks import canary
from tasks.answers import golden_requests
from tasks.core.artifacts import Canary, Recording
from tasks.core.errors import DataError
from tasks.in_tensorflow import record
from tasks.processes.tensorflow_process import ignore_progress


def _example(**more: Any) -> tf.train.Example:
    example = tf.train.Example()
    example.features.feature["pixels"].float_list.value.extend([0.5] * 64)
    for name, value in more.items():
        feature = example.features.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        else:
            feature.int64_list.value.append(value)
    return example


def _log(file: Path, *examples: tf.train.Example) -> Path:
    """A request log as the model server writes one: Classify, with its answers."""
    with tf.io.TFRecordWriter(str(file)) as writer:
        for example in examples:
            log = prediction_log_pb2.PredictionLog()
            log.classify_log.request.model_spec.name = "digits"
            log.classify_log.request.model_spec.version.value = 7
            log.classify_log.request.input.example_list.examples.append(example)
            log.classify_log.response.result.classifications.add()
            writer.write(log.SerializeToString())
    return file


def _recorded(file: Path, *logs: Path, requests: int = 20, **listed: Any) -> Recording:
    return record.run(
        ignore_progress, file, "digits", requests, logs, exported_digits(), trained_digits().config.data,
        GoldenConfig(features=listed),
    )  # fmt: skip


def test_samples_are_asked_about_by_every_api_without_their_label(tmp_path: Path) -> None:
    """In turn, each about another example; what is recorded is a request alone."""
    done = _recorded(tmp_path / "golden", requests=8)
    logs = golden_requests.read(tmp_path / "golden")
    asked = [(log.WhichOneof("log_type"), golden_requests.request(log).model_spec) for log in logs]
    assert (done.requests, done.changed) == (len(logs), ("label",)) == (8, ("label",))
    assert {kind for kind, _ in asked} == {"predict_log", "classify_log"}
    assert {spec.signature_name for _, spec in asked} >= {"predict", "serving_default", "classification"}
    assert all(spec.name == "digits" and not spec.HasField("version") for _, spec in asked)
    assert b"label" not in (tmp_path / "golden").read_bytes()


def test_an_unlisted_feature_is_an_error_that_names_it(tmp_path: Path) -> None:
    """And nothing is written."""
    log = _log(tmp_path / "log", _example(user=b"ann@example.org"))
    with pytest.raises(DataError, match=r"a request holds 'user', which is not in data\.features") as refused:
        _recorded(tmp_path / "golden", log)
    assert "golden.features: {user: drop}" in refused.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_listed_features_are_dropped_or_hashed(tmp_path: Path) -> None:
    """Equal values stay equal, and the same ones in another recording do not: the key is thrown away."""
    log = _log(
        tmp_path / "log", _example(user=b"ann", night=1, note=b"x"), _example(user=b"ann", night=2, note=b"y")
    )
    listed = {"user": "hash", "night": "hash", "note": "drop"}
    done = _recorded(tmp_path / "golden", log, **listed)
    assert (done.requests, done.changed) == (2, ("night", "note", "user"))
    found = [
        golden_requests.request(each).input.example_list.examples[0].features.feature
        for each in golden_requests.read(tmp_path / "golden")
    ]
    users = [features["user"].bytes_list.value[0] for features in found]
    nights = [features["night"].int64_list.value[0] for features in found]
    assert users[0] == users[1] and len(users[0]) == 64 and b"ann" not in users[0]
    assert nights[0] != nights[1] and all(night > 2 for night in nights)
    assert all("note" not in features for features in found)
    _recorded(tmp_path / "again", log, **listed)
    assert users[0] not in (tmp_path / "again").read_bytes()


def test_answers_and_repetitions_are_not_recorded(tmp_path: Path) -> None:
    """Of many requests a sample is; the same one every time."""
    log = _log(tmp_path / "log", *[_example(night=number) for number in (1, 1, 1, 2)])
    assert _recorded(tmp_path / "golden", log, night="keep").requests == 2
    assert not any(
        each.classify_log.HasField("response") for each in golden_requests.read(tmp_path / "golden")
    )
    one, other = (tmp_path / name for name in ("one", "other"))
    for file in (one, other):
        assert _recorded(file, log, requests=1, night="keep").requests == 1
    assert one.read_bytes() == other.read_bytes()


def test_what_is_no_request_log_is_refused(tmp_path: Path) -> None:
    """By its name."""
    (tmp_path / "log").write_text("hello, this is no TFRecord at all")
    with pytest.raises(DataError, match="log is not a TFRecord of PredictionLogs"):
        _recorded(tmp_path / "golden", tmp_path / "log")


def test_what_is_recorded_is_what_is_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file named from the home folder is looked for there by both; a folder has to be there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    pipeline = written(tmp_path / "small", {"golden": {"file": "~/of_home"}})
    (tmp_path / "of_home").touch()
    assert pipeline.config.golden.recorded(pipeline.folder) == tmp_path / "of_home"
    with pytest.raises(ConfigError, match=f"{tmp_path}/of_home is there already"):
        record_command.run(pipeline, 9, [])
    nowhere = written(tmp_path / "small", {"golden": {"file": "recorded/golden"}})
    with pytest.raises(ConfigError, match=r"there is no folder .*/small/recorded"):
        record_command.run(nowhere, 9, [])


@pytest.mark.parametrize(
    ("golden", "told"),
    [
        ({}, False), ({"file": "golden.tfrecord"}, False), ({"file": "./golden.tfrecord"}, False),
        ({"file": "gloden.tfrecord"}, True), ({"file": "nowhere/golden.tfrecord"}, True),
    ],
)  # fmt: skip
def test_a_file_that_is_named_and_not_there_is_told_by_the_canary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden: dict[str, str], told: bool
) -> None:
    """A typo would take the gate away. The default need not be there: who records nothing is told nothing."""
    pipeline = written(tmp_path / "small", {"golden": golden})
    config, run = pipeline.config, run_of(pipeline, tmp_path)
    for module, name in ((canary.model_versions, "lent_to_canary"), (canary.temporary_servers, "started")):
        monkeypatch.setattr(module, name, lambda *_: nullcontext(tmp_path))
    for module, name in ((canary.model_versions, "lend"), (canary, "_planned"), (canary, "_see_it_load")):
        monkeypatch.setattr(module, name, lambda *_: None)
    monkeypatch.setattr(canary, "_asked", lambda *_: Canary())
    candidate, target = SimpleNamespace(path=tmp_path), None
    with disable_run_logger():
        proof = canary.canary.fn(
            config.deployment, config.smoke_test, config.data, candidate, target, config.golden, run
        )
    expected = f"none are recorded in {pipeline.folder / golden.get('file', '')}"
    rows = [(row.name, row.observed, row.passed) for row in proof.checks]
    assert rows == ([("canary golden requests", expected, True)] if told else [])
