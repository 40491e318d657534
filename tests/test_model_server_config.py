"""Several models from a config file, and configs replaced while the server runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from model_server_fixtures import NAME, Models, RunningServer, StartServer, wait_until

pytest_plugins = ["model_server_fixtures"]

# ruff: noqa: E402 (the protos import all of TensorFlow)
from model_server_lives import (
    AVAILABLE,
    END,
    answer,
    available,
    config,
    entry,
    inference_error,
    refusal,
    reload,
    statuses,
    wait_for_available,
)
from model_server_requests import TIMEOUT

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Zoo:
    """A server of models "a" (versions 1 and 2 on disk) and "b" (3), and directories to add more from."""

    def __init__(self, server: RunningServer, root: Path, models: Models) -> None:
        self.server = server
        self.root = root
        self.models = models
        self.config = config(entry("a", root / "a"), entry("b", root / "b"))

    def health(self, name: str) -> int:
        answered = health_pb2_grpc.HealthStub(self.server.channel).Check(
            health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT
        )
        return int(answered.status)


@pytest.fixture(scope="module")
def shared_zoo(models: Models, start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    root = tmp_path_factory.mktemp("zoo")
    models.publish(root / "a", 1)
    models.publish(root / "a", 2)
    models.publish(root / "b", 3)
    file = root / "models.config"
    file.write_text(config(entry("a", root / "a"), entry("b", root / "b")))
    server = start_server(root / "nowhere", f"--model_config_file={file}", "--max_num_load_retries=0")
    return Zoo(server, root, models)


@pytest.fixture
def zoo(shared_zoo: Zoo) -> Iterator[Zoo]:
    """The server, with the config that it started with before and after each test."""
    yield shared_zoo
    reload(shared_zoo.server, shared_zoo.config)
    wait_for_available(shared_zoo.server, [2], "a")
    wait_for_available(shared_zoo.server, [3], "b")


def test_a_config_file_names_several_models(zoo: Zoo) -> None:
    """Each answers for itself; the flags that name one model are passed over."""
    assert (answer(zoo.server, "a"), answer(zoo.server, "b")) == (2, 3)
    assert inference_error(zoo.server, NAME) == (
        "NOT_FOUND",
        f"Servable not found for request: Latest({NAME})",
    )
    assert (zoo.health("a"), zoo.health("b"), zoo.health("")) == (SERVING, SERVING, SERVING)


def test_models_are_listed_over_rest(zoo: Zoo) -> None:
    """Names in alphabetical order, each with what the status of one model says."""
    code, listed = zoo.server.get("/v1/models")
    assert code == 200
    assert [model["name"] for model in listed["models"]] == ["a", "b"]
    status = zoo.server.get("/v1/models/b")[1]
    assert listed["models"][1] == {"name": "b", "version_labels": {}, **status}
    assert zoo.server.get("/v1/models/") == (200, listed)


def test_a_reload_replaces_the_whole_set(zoo: Zoo) -> None:
    """The call returns when new models answer; models that are not listed any more are gone by then."""
    reload(zoo.server, config(entry("b", zoo.root / "b"), entry("c", zoo.root / "a")))
    assert answer(zoo.server, "c") == 2
    assert answer(zoo.server, "b") == 3
    assert inference_error(zoo.server, "a") == ("NOT_FOUND", "Servable not found for request: Latest(a)")
    assert (zoo.health("a"), zoo.health("c")) == (NOT_SERVING, SERVING)
    wait_for_available(zoo.server, [], "a")
    assert statuses(zoo.server, "a") == [(2, END, "")], "unloaded versions stay listed"
    assert [model["name"] for model in zoo.server.get("/v1/models")[1]["models"]] == ["b", "c"]


def test_an_empty_list_unloads_everything(zoo: Zoo) -> None:
    """The server goes on, and takes the next config."""
    reload(zoo.server, config())
    assert inference_error(zoo.server, "a")[0] == "NOT_FOUND"
    assert zoo.server.get("/v1/models") == (200, {"models": []})
    assert zoo.health("") == SERVING


def test_a_reload_counts_what_it_was_asked_to(zoo: Zoo) -> None:
    """int64 increases by metric name, in the request's order; 0 for a name that nobody counts."""
    attempts = "/tensorflow/cc/saved_model/load_attempt_count"
    answered = reload(zoo.server, config(entry("c", zoo.root / "b")), attempts, "/no/such/metric")
    assert answered.status.error_code == 0
    assert [(metric.name, metric.int64_value_increase) for metric in answered.metric] == [
        (attempts, 1),
        ("/no/such/metric", 0),
    ]


REFUSED = {
    "twice": (
        'config { name: "a" base_path: "/x" model_platform: "tensorflow" } '
        'config { name: "a" base_path: "/y" model_platform: "tensorflow" }',
        "INVALID_ARGUMENT",
        "Illegal to list model a multiple times in config list",
    ),
    "relative path": (
        'config { name: "a" base_path: "x/y" model_platform: "tensorflow" }',
        "INVALID_ARGUMENT",
        "Expected model a to have an absolute path or URI; got base_path()=x/y",
    ),
    "no path": (
        'config { name: "a" model_platform: "tensorflow" }',
        "INVALID_ARGUMENT",
        "Expected model a to have an absolute path or URI; got base_path()=",
    ),
    "no platform": (
        'config { name: "a" base_path: "/x" }',
        "INVALID_ARGUMENT",
        "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
        "ModelServerConfig::model_platform, model name is a",
    ),
    "other platform": (
        'config { name: "a" base_path: "/x" model_platform: "hashmap" }',
        "INVALID_ARGUMENT",
        "Illegal to change a model's platform. For model a platform was tensorflow and new platform "
        "requested is hashmap",
    ),
    "unsupported platform": (
        'config { name: "z" base_path: "/x" model_platform: "hashmap" }',
        "INVALID_ARGUMENT",
        "Model z requests unsupported platform hashmap",
    ),
    "type": (
        'config { name: "z" base_path: "/x" model_type: OTHER }',
        "INVALID_ARGUMENT",
        "ModelServerConfig::model_type choice 2 not supported.",
    ),
    "bucket": (
        'config { name: "z" base_path: "gs://bucket/z" model_platform: "tensorflow" }',
        "UNIMPLEMENTED",
        "Model z has base_path gs://bucket/z: only local directories are served here",
    ),
    "logging": (
        'config { name: "a" base_path: "/x" model_platform: "tensorflow" logging_config { } }',
        "INVALID_ARGUMENT",
        "Model a: log_collector_config.filename_prefix is not set",
    ),
    "no name": (
        'config { base_path: "/x" model_platform: "tensorflow" }',
        "INVALID_ARGUMENT",
        "Expected every model to have a name; got none for '/x'",
    ),
    "label": (
        'config { name: "b" base_path: "/x" model_platform: "tensorflow" '
        'version_labels { key: "canary" value: 9 } }',
        "FAILED_PRECONDITION",
        "Request to assign label to version 9 of model b, which is not currently available for inference",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_reload_leaves_the_config_before_wholly_in_place(zoo: Zoo, case: str) -> None:
    """The official texts. The official server has by then replaced its config in memory; this one has not."""
    entries, code, text = REFUSED[case]
    also_new = entry("new", zoo.root / "a")
    assert refusal(zoo.server, config(also_new, entries)) == (code, text)
    assert (answer(zoo.server, "a"), answer(zoo.server, "b")) == (2, 3)
    assert statuses(zoo.server, "new") == []
    assert [model["name"] for model in zoo.server.get("/v1/models")[1]["models"]] == ["a", "b"]


@pytest.mark.parametrize("text", ["", "custom_model_config { }"])
def test_only_lists_of_models_are_taken(zoo: Zoo, text: str) -> None:
    """As the official server says."""
    assert refusal(zoo.server, text) == (
        "INVALID_ARGUMENT",
        "ServerModelConfig type not supported by HandleReloadConfigRequest. "
        "Only ModelConfigList is currently supported",
    )


def test_a_reload_can_be_turned_off(start_server: StartServer, models: Models, tmp_path: Path) -> None:
    """MODEL_SERVER_RELOAD=false: no client changes what is served; its status is told as ever."""
    models.publish(tmp_path, 1)
    server = start_server(tmp_path, MODEL_SERVER_RELOAD="false")
    assert refusal(server, config()) == (
        "PERMISSION_DENIED",
        "HandleReloadConfigRequest is turned off here (MODEL_SERVER_RELOAD=false)",
    )
    assert statuses(server) == [(1, AVAILABLE, "")]


def test_a_new_model_that_does_not_load_is_named(zoo: Zoo) -> None:
    """UNKNOWN in the official words; the other new model answers, and the broken one when it is mended."""
    broken = zoo.models.publish(zoo.root / "broken", 1)
    saved_model = (broken / "saved_model.pb").read_bytes()
    (broken / "saved_model.pb").write_bytes(b"no SavedModel")
    wanted = config(entry("broken", zoo.root / "broken"), entry("good", zoo.root / "b"))
    code, text = refusal(zoo.server, wanted)
    assert code == "UNKNOWN"
    assert text.startswith(
        "1 model(s) did not become available: {{{name: broken version: 1} due to error: DATA_LOSS: Can't"
    )
    assert text.endswith("}, }")
    wait_for_available(zoo.server, [3], "good")
    (broken / "saved_model.pb").write_bytes(saved_model)
    wait_for_available(zoo.server, [1], "broken")
    assert answer(zoo.server, "broken") == 1


def test_a_reload_waits_for_a_model_that_is_not_there_yet(zoo: Zoo) -> None:
    """Until the caller's deadline; the config stays, and the model comes when its files do."""
    wanted = config(entry("a", zoo.root / "a"), entry("late", zoo.root / "late"))
    code, _ = refusal(zoo.server, wanted, timeout=0.5)
    assert code == "DEADLINE_EXCEEDED"
    assert zoo.health("late") == NOT_SERVING
    answered: list[object] = []
    waiting = threading.Thread(
        target=lambda: answered.append(reload(zoo.server, config(entry("later", zoo.root / "late"))))
    )
    waiting.start()
    wait_until(lambda: zoo.server.get("/v1/models")[1]["models"][0]["name"] == "later", "the config")
    zoo.models.publish(zoo.root / "late", 4)
    waiting.join(TIMEOUT)
    assert len(answered) == 1
    assert answer(zoo.server, "later") == 4


def test_a_model_may_have_a_log_of_its_requests(zoo: Zoo, tmp_path: Path) -> None:
    """By logging_config, where the official server says "No request-logger-creator provided."."""
    logged = (
        f'config {{ name: "a" base_path: "{zoo.root}/a" model_platform: "tensorflow" logging_config {{ '
        f'log_collector_config {{ type: "tfrecord" filename_prefix: "{tmp_path}/a" }} '
        "sampling_config { sampling_rate: 1 } } } "
    )
    reload(zoo.server, config(logged, entry("b", zoo.root / "b")))
    answer(zoo.server, "a")
    answer(zoo.server, "b")
    reload(zoo.server, zoo.config)
    files = list(tmp_path.iterdir())
    assert len(files) == 1
    assert files[0].name.startswith("a-")


def test_a_moved_base_path_is_followed(zoo: Zoo) -> None:
    """The versions of the new path replace those of the old, without a gap."""
    reload(zoo.server, config(entry("a", zoo.root / "b")))
    wait_for_available(zoo.server, [3], "a")
    assert answer(zoo.server, "a") == 3


def test_a_reload_may_name_the_deprecated_type(zoo: Zoo) -> None:
    """model_type: TENSORFLOW is the platform "tensorflow"."""
    reload(
        zoo.server,
        f'model_config_list {{ config {{ name: "a" base_path: "{zoo.root}/a" model_type: TENSORFLOW }} }}',
    )
    assert answer(zoo.server, "a") == 2


def test_the_config_file_is_read_again(models: Models, start_server: StartServer, tmp_path: Path) -> None:
    """A wrong file changes nothing and is logged once; a right one is served without a restart."""
    models.publish(tmp_path / "a", 1)
    models.publish(tmp_path / "b", 2)
    file = tmp_path / "models.config"
    file.write_text(config(entry("a", tmp_path / "a")))
    server = start_server(tmp_path, f"--model_config_file={file}", "--model_config_file_poll_wait_seconds=1")
    file.write_text("model_config_list { config { nam")
    server.wait_for_log("Error parsing text-format tensorflow.serving.ModelServerConfig")
    server.wait_for_log(
        "is not followed, the config before it stays: INVALID_ARGUMENT: Invalid protobuf file"
    )
    assert answer(server, "a") == 1
    replacement = tmp_path / "models.config.new"
    replacement.write_text(config(entry("b", tmp_path / "b")))
    replacement.rename(file)
    wait_until(lambda: available(server, "b") == [2], "model b", lambda: server.log)
    assert inference_error(server, "a")[0] == "NOT_FOUND"
    assert server.log.count("is not followed") == 1


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "NOT_FOUND: {file}; No such file or directory"),
        ("nonsense { }", "INVALID_ARGUMENT: Invalid protobuf file: '{file}'"),
        ("custom_model_config { }",
         "INVALID_ARGUMENT: ModelServer does not yet support custom model config."),
        (config(entry("a", "x")),
         "INVALID_ARGUMENT: Expected model a to have an absolute path or URI; got base_path()=x"),
        (config(entry("a", "/x", labels={"stable": 1})),
         "FAILED_PRECONDITION: Request to assign label to version 1 of model a, which is not currently "
         "available for inference"),
    ],
)  # fmt: skip
def test_a_wrong_config_file_starts_no_server(
    start_server: StartServer, tmp_path: Path, text: str | None, error: str
) -> None:
    """Exit 255 with the official text."""
    file = tmp_path / "models.config"
    if text is not None:
        file.write_text(text)
    server = start_server(tmp_path, f"--model_config_file={file}", wait=False)
    assert server.exit_code() == 255
    assert f"Failed to start server. Error: {error.format(file=file)}\n" in server.log


def test_while_models_are_awaited_rest_says_so(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """Alive but not ready, states in a list, 503 for inference, no gRPC port; other models load meanwhile."""
    models.publish(tmp_path / "a", 1)
    file = tmp_path / "models.config"
    file.write_text(config(entry("a", tmp_path / "a"), entry("b", tmp_path / "b")))
    server = start_server(tmp_path, f"--model_config_file={file}", wait=False)
    server.wait_for_log("model a version 1: available")
    assert server.get("/livez")[0] == 200
    assert server.get("/readyz") == (503, {"ready": False, "waiting_for": ["b"]})
    listed = server.get("/v1/models")[1]["models"]
    assert [model["name"] for model in listed] == ["a", "b"]
    assert listed[0]["model_version_status"][0]["state"] == "AVAILABLE"
    assert "model_version_status" not in listed[1] or not listed[1]["model_version_status"]
    assert server.post("/v1/models/a:predict", {"instances": [1.0]}) == (
        503, {"error": "The server is starting and waits for models: b"},
    )  # fmt: skip
    with pytest.raises(grpc.FutureTimeoutError):
        grpc.channel_ready_future(server.channel).result(timeout=0.2)
    assert f"Could not find base path {tmp_path / 'b'} for servable b." in server.log
    models.publish(tmp_path / "b", 3)
    server.wait_until_ready()
    assert (answer(server, "a"), answer(server, "b")) == (1, 3)
    assert server.get("/readyz") == (200, {"ready": True, "waiting_for": []})
    assert server.get("/livez")[0] == 200


def test_a_model_that_does_not_load_ends_the_start_of_all(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """Exit 255, naming each model that failed."""
    models.publish(tmp_path / "a", 1)
    for name in ("b", "c"):
        (models.publish(tmp_path / name, 2) / "saved_model.pb").write_bytes(b"no SavedModel")
    file = tmp_path / "models.config"
    file.write_text(config(*(entry(name, tmp_path / name) for name in "abc")))
    server = start_server(tmp_path, f"--model_config_file={file}", "--max_num_load_retries=0", wait=False)
    assert server.exit_code() == 255
    assert (
        "Failed to start server. Error: UNKNOWN: 2 servable(s) did not become available: "
        "{{{name: b version: 2} due to error: DATA_LOSS: "
    ) in server.log
    assert "{{name: c version: 2} due to error: DATA_LOSS: " in server.log
