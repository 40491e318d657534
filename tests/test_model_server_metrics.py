"""Metrics: the official names, labels and buckets; what this server adds; sums over several processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_server_fixtures import NAME, Models, RunningServer, StartServer
from prometheus_client.parser import text_string_to_metric_families

from model_server.observability import counters, metrics, metrics_page
from model_server.observability.metrics import LATENCY_LIMITS, Recorder

pytest_plugins = ["model_server_fixtures"]

# ruff: noqa: E402 (the protos import all of TensorFlow)
from model_server_requests import (
    TIMEOUT,
    classify_request,
    error_of,
    floats,
    predict_request,
    regress_request,
    spec,
    stub,
)

PAGE = "/watch/me"
Value = Callable[..., float | None]


def parsed(page: bytes) -> Value:
    """Return a function from a sample's name and labels to its value; Prometheus's own parser reads."""
    samples = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }

    def value(name: str, **labels: str) -> float | None:
        # The parser calls a counter x_total, as OpenMetrics does; on the page the official name stands.
        keys = ((each, frozenset(labels.items())) for each in (name, f"{name}_total"))
        return next((samples[key] for key in keys if key in samples), None)

    return value


@pytest.fixture(scope="module")
def server(
    models: Models, start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> RunningServer:
    base_path = tmp_path_factory.mktemp("metrics")
    models.publish(base_path, 1)
    config = base_path / "monitoring.cfg"
    config.write_text(f'prometheus_config {{ enable: true, path: "{PAGE}" }}')
    return start_server(base_path, f"--monitoring_config_file={config}")


def scrape(server: RunningServer) -> Value:
    status, headers, body = server.raw("GET", PAGE, None)
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return parsed(body)


def difference(server: RunningServer, act: Callable[[], Any]) -> Callable[..., float]:
    """Return a function that says how much `act` has added to a sample."""
    before = scrape(server)
    act()
    after = scrape(server)
    return lambda name, **labels: (after(name, **labels) or 0.0) - (before(name, **labels) or 0.0)


def test_requests_are_counted_by_model_and_status(server: RunningServer) -> None:
    """:tensorflow:serving:request_count, over gRPC and REST together."""

    def act() -> None:
        stub(server).Predict(predict_request(x=floats(1)), timeout=TIMEOUT)
        server.post(f"/v1/models/{NAME}:predict", {"instances": [1.0]})
        error_of(stub(server).Predict, predict_request(spec(version=9), x=floats(1)))
        error_of(stub(server).Predict, predict_request())

    added = difference(server, act)
    name = ":tensorflow:serving:request_count"
    assert added(name, model_name=NAME, status="OK") == 2
    assert added(name, model_name=NAME, status="NOT_FOUND") == 1
    assert added(name, model_name=NAME, status="INVALID_ARGUMENT") == 1


def test_unknown_models_do_not_become_labels(server: RunningServer) -> None:
    """The official server makes a label of whatever a client sends; here they share the empty name."""
    added = difference(
        server,
        lambda: [
            error_of(stub(server).Predict, predict_request(spec(f"made_up_{i}"), x=floats(1)))
            for i in range(3)
        ],
    )
    assert added(":tensorflow:serving:request_count", model_name="", status="NOT_FOUND") == 3
    assert b'\n:tensorflow:serving:request_count{model_name=""' in server.raw("GET", PAGE, None)[2]
    assert b"made_up" not in server.raw("GET", PAGE, None)[2]


def test_latencies_have_the_official_labels_and_buckets(server: RunningServer) -> None:
    """API is the method's name over gRPC and the path's over REST; runtime_latency knows the former only."""

    def act() -> None:
        stub(server).Classify(classify_request("classify", 1), timeout=TIMEOUT)
        server.post(f"/v1/models/{NAME}:classify", {"signature_name": "classify", "examples": [{"x": 1.0}]})
        error_of(stub(server).Classify, classify_request("missing", 1))

    added = difference(server, act)
    latency = ":tensorflow:serving:request_latency"
    over_grpc = {"model_name": NAME, "API": "Classify", "entrypoint": "GRPC"}
    over_rest = {"model_name": NAME, "API": "classify", "entrypoint": "REST"}
    assert added(f"{latency}_count", **over_grpc) == 1  # a failure has no latency
    assert added(f"{latency}_count", **over_rest) == 1
    assert added(f"{latency}_bucket", **over_grpc, le="+Inf") == 1
    assert added(f"{latency}_sum", **over_grpc) > 0
    runtime = {"model_name": NAME, "API": "Classify", "runtime": "TF1"}
    assert added(":tensorflow:serving:runtime_latency_count", **runtime) == 2
    limits = [f"{limit:g}" for limit in LATENCY_LIMITS]
    assert (limits[0], limits[1], limits[19], len(limits)) == ("10", "18", "708235", 33)
    value = scrape(server)
    assert all(value(f"{latency}_bucket", **over_grpc, le=limit) is not None for limit in limits)


def test_examples_are_counted(server: RunningServer) -> None:
    """A value on a bucket's limit is in the next bucket, as TensorFlow's histograms have it."""
    added = difference(
        server, lambda: stub(server).Regress(regress_request("regress", 1, 2, 3, 4), timeout=TIMEOUT)
    )
    counts = ":tensorflow:serving:request_example_counts"
    assert added(":tensorflow:serving:request_example_count_total", model=NAME) == 4
    assert (added(f"{counts}_sum", model=NAME), added(f"{counts}_count", model=NAME)) == (4, 1)
    assert (added(f"{counts}_bucket", model=NAME, le="4"), added(f"{counts}_bucket", model=NAME, le="8")) == (
        0,
        1,
    )


def test_versions_and_signatures_have_metrics_of_their_own(server: RunningServer) -> None:
    """Beside the official ones, which know neither."""
    added = difference(server, lambda: stub(server).Predict(predict_request(x=floats(1)), timeout=TIMEOUT))
    labels = {
        "model_name": NAME,
        "version": "1",
        "signature": "serving_default",
        "API": "Predict",
        "entrypoint": "GRPC",
    }
    assert added("model_server_requests_total", **labels, status="OK") == 1
    assert added("model_server_request_latency_microseconds_count", **labels) == 1
    page = server.raw("GET", PAGE, None)[2].decode()
    assert 'model_server_build_info{version="2.15.1+slipway",tensorflow_version="2.15.1"} 1' in page


def test_a_made_up_signature_is_no_label(server: RunningServer) -> None:
    """Only signatures of the version that answers."""
    error_of(stub(server).Predict, predict_request(spec(signature="made_up"), x=floats(1)))
    assert b"made_up" not in server.raw("GET", PAGE, None)[2]


def test_without_a_monitoring_config_there_is_no_page(half_plus_two: RunningServer) -> None:
    """As in the official server."""
    assert half_plus_two.raw("GET", "/monitoring/prometheus/metrics", None)[0] == 404


def test_several_processes_are_summed(tmp_path: Path) -> None:
    """Each counts into a file of its own; a version that has gone counts for its model only."""
    recorders = [Recorder(tmp_path / f"{i}.counters") for i in range(3)]
    for i, recorder in enumerate(recorders):
        for version in range(i + 1):
            recorder.record(("Predict", "GRPC", "m", version, "s"), 0, time.perf_counter_ns(), 5_000, 2)
    page = metrics_page.page(recorders[0], [tmp_path / "1.counters", tmp_path / "2.counters"], {("m", 1)}, {})
    value = parsed(page)
    assert value(":tensorflow:serving:request_count", model_name="m", status="OK") == 6
    assert value(":tensorflow:serving:request_example_count_total", model="m") == 12
    runtime = {"model_name": "m", "API": "Predict", "runtime": "TF1"}
    assert value(":tensorflow:serving:runtime_latency_bucket", **runtime, le="10") == 6
    assert value(":tensorflow:serving:runtime_latency_sum", **runtime) == 30
    assert page.count(b'version="1"') > 0 == page.count(b'version="0"')
    assert counters.read(tmp_path / "gone.counters") == []


def test_histograms_of_rarer_events(tmp_path: Path) -> None:
    """By name and labels; the same object for the same."""
    recorder = Recorder()
    for value in (1, 3, 100):
        recorder.histogram("sizes", (2.0, 4.0), {"model": 'a"b\\c\nd'}).add(value)
    page = metrics_page.page(recorder, [], [], {})
    assert parsed(page)("sizes_bucket", model='a"b\\c\nd', le="4") == 2
    assert parsed(page)("sizes_sum", model='a"b\\c\nd') == 104


def test_a_full_file_drops_detail_not_requests(tmp_path: Path) -> None:
    """What has no room for labels of its own is counted without."""
    recorder = Recorder()
    recorder.file = counters.CounterFile(tmp_path / "small", 4096)
    recorder._overflow = recorder.file.block((metrics.REQUEST, "", "", "", 0, ""), metrics.REQUEST_WORDS) or 0
    for i in range(20):
        recorder.record(("Predict", "GRPC", f"model_{i}", 1, "s"), 0, time.perf_counter_ns())
        recorder.histogram(f"h{i}", LATENCY_LIMITS, {}).add(1)
    counted = [words for key, words in recorder.file.blocks() if key[0] == metrics.REQUEST]
    assert sum(words[0] for words in counted) == 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prometheus_config { enabled: true }", "Invalid protobuf file"),
        ('prometheus_config { enable: true, path: "x" }', "must begin with /"),
    ],
)
def test_a_bad_monitoring_config_ends_the_start(
    tmp_path: Path, start_server: StartServer, text: str, message: str
) -> None:
    """Before a model is loaded."""
    (tmp_path / "monitoring.cfg").write_text(text)
    server = start_server(tmp_path, f"--monitoring_config_file={tmp_path}/monitoring.cfg", wait=False)
    assert server.exit_code() == 255
    assert message in server.log
