"""Version labels: names that stay while the versions behind them change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from model_server_fixtures import Models, RunningServer, StartServer

pytest_plugins = ["model_server_fixtures"]

# ruff: noqa: E402 (the protos import all of TensorFlow)
from model_server_lives import answer, config, entry, inference_error, refusal, reload, wait_for_available
from model_server_requests import TIMEOUT, classify_request, regress_request, stub

ALL = "all { }"
NOT_AVAILABLE = (
    "FAILED_PRECONDITION",
    "Request to assign label to version {} of model m, which is not currently available for inference",
)


class Labelled:
    """A server of model "m" with versions 1 and 2 in service, and a way to label them."""

    def __init__(self, server: RunningServer, base_path: Path) -> None:
        self.server = server
        self.base_path = base_path

    def config(self, labels: Mapping[str, int]) -> str:
        return config(entry("m", self.base_path, ALL, labels))

    def label(self, **labels: int) -> None:
        reload(self.server, self.config(labels))

    def refusal(self, **labels: int) -> tuple[str, str]:
        return refusal(self.server, self.config(labels))

    def answer(self, label: str) -> int:
        return answer(self.server, "m", label=label)


@pytest.fixture(scope="module")
def start_labelled(
    models: Models, start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Labelled]:
    def start(*flags: str) -> Labelled:
        root = tmp_path_factory.mktemp("labels")
        for version in (1, 2):
            models.publish(root / "m", version)
        file = root / "models.config"
        file.write_text(config(entry("m", root / "m", ALL)))
        server = start_server(root, f"--model_config_file={file}", *flags)
        wait_for_available(server, [2, 1], "m")
        return Labelled(server, root / "m")

    return start


@pytest.fixture(scope="module")
def strict_server(start_labelled: Callable[..., Labelled]) -> Labelled:
    return start_labelled()


@pytest.fixture(scope="module")
def lenient_server(start_labelled: Callable[..., Labelled]) -> Labelled:
    return start_labelled("--allow_version_labels_for_unavailable_models")


@pytest.fixture
def strict(strict_server: Labelled) -> Iterator[Labelled]:
    yield strict_server
    strict_server.label()


@pytest.fixture
def lenient(lenient_server: Labelled) -> Iterator[Labelled]:
    yield lenient_server
    lenient_server.label()


def test_a_label_stands_for_a_version(strict: Labelled) -> None:
    """Answers name the version, never the label; a moved label answers anew at once."""
    strict.label(stable=1, canary=2)
    assert (strict.answer("stable"), strict.answer("canary")) == (1, 2)
    assert answer(strict.server, "m") == 2
    strict.label(stable=2)
    assert strict.answer("stable") == 2
    assert inference_error(strict.server, "m", label="canary") == (
        "INVALID_ARGUMENT", "Unrecognized servable version label: canary",
    )  # fmt: skip


def test_labels_work_in_every_method_and_over_rest(strict: Labelled) -> None:
    """Not in the status, which passes over them as the official server does."""
    strict.label(stable=1)
    calls = stub(strict.server)
    for call, request in (
        (calls.Classify, classify_request("classify", 5.0)),
        (calls.Regress, regress_request("regress", 5.0)),
    ):
        request.model_spec.name, request.model_spec.version_label = "m", "stable"
        answered = call(request, timeout=TIMEOUT)
        assert answered.model_spec.version.value == 1
        assert not answered.model_spec.version_label
    assert answered.result.regressions[0].value == 4.5
    assert strict.server.post("/v1/models/m/labels/stable:predict", {"instances": [5.0]}) == (
        200, {"predictions": [4.5]},
    )  # fmt: skip
    code, metadata = strict.server.get("/v1/models/m/labels/stable/metadata")
    assert (code, metadata["model_spec"]["version"]) == (200, "1")
    assert strict.server.get("/v1/models/m/labels/stable") == strict.server.get("/v1/models/m")
    assert strict.server.get("/v1/models")[1]["models"][0]["version_labels"] == {"stable": 1}


def test_a_label_needs_an_available_version(strict: Labelled) -> None:
    """A refused move leaves the label where it was."""
    strict.label(stable=1)
    code, text = NOT_AVAILABLE
    assert strict.refusal(stable=7) == (code, text.format(7))
    assert strict.refusal(stable=2, canary=7) == (code, text.format(7))
    assert strict.answer("stable") == 1


def test_new_labels_may_be_ahead_of_their_versions(lenient: Labelled, models: Models) -> None:
    """With the flag a new label may name what is not there yet; a label in use moves only to what is."""
    lenient.label(stable=1, next=3)
    assert inference_error(lenient.server, "m", label="next") == (
        "NOT_FOUND", "Servable not found for request: Specific(m, 3)",
    )  # fmt: skip
    code, text = NOT_AVAILABLE
    assert lenient.refusal(stable=4, next=3) == (code, text.format(4))
    assert lenient.answer("stable") == 1
    models.publish(lenient.base_path, 3)
    wait_for_available(lenient.server, [3, 2, 1], "m")
    assert lenient.answer("next") == 3
    lenient.label(stable=3, next=3)
    assert lenient.answer("stable") == 3


def test_a_server_may_start_with_labels(models: Models, start_server: StartServer, tmp_path: Path) -> None:
    """With the flag only: without it no version is available yet (test_model_server_config.py)."""
    models.publish(tmp_path / "m", 1)
    file = tmp_path / "models.config"
    file.write_text(config(entry("m", tmp_path / "m", labels={"stable": 1})))
    server = start_server(
        tmp_path, f"--model_config_file={file}", "--allow_version_labels_for_unavailable_models=true"
    )
    assert answer(server, "m", label="stable") == 1
