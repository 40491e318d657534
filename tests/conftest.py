"""What tests share: a home of their own, one Prefect server, and the rule about Docker."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from slipway_command import Slipway, free_port

# How long an example takes says more of the machine than of the code.
settings.register_profile("slipway", deadline=None)
settings.load_profile("slipway")

SLOW = (
    "test_benchmarks", "test_best_checkpoint", "test_cluster", "test_graph_pipelines",
    "test_model_server_lifecycle", "test_resume", "test_saved_model_cli", "test_strategies",
    "test_training", "test_warm_start",
)  # fmt: skip
"""Modules whose tests take long enough to be left out of `make test-fast`, as whole flows are."""

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """Keep every test, and every process that one starts, off this machine's own Prefect and state."""
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "SLIPWAY_BASE_IMAGE"):
        os.environ.pop(name, None)
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"


def _why_no_docker() -> str | None:
    import docker
    from docker.errors import DockerException

    try:
        docker.from_env(timeout=10).ping()
    except DockerException as error:
        return f"no Docker engine answers: {error}"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Call whole flows slow; skip Docker tests, with the reason, where no engine answers, but not in CI."""
    for item in items:
        if "prefect_api" in getattr(item, "fixturenames", ()) or item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)
    marked = [item for item in items if item.get_closest_marker("docker")]
    if not marked or os.environ.get("SLIPWAY_REQUIRE_DOCKER"):
        return
    reason = _why_no_docker()
    if reason is not None:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A $SLIPWAY_HOME that only this test has."""
    folder = tmp_path / "home"
    monkeypatch.setenv("SLIPWAY_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API address of a Prefect server of this test session's own."""
    folder, port = tmp_path_factory.mktemp("prefect"), free_port()
    api = f"http://127.0.0.1:{port}/api"
    environment = {
        **os.environ,
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_API_URL": api,
    }
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start"],
            env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        _wait_for(f"{api}/health", server, folder / "server.log")
        yield api
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path, seconds: float = 120.0) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"the Prefect server did not come up:\n{log.read_text()[-3000:]}")


@pytest.fixture
def slipway(home: Path, prefect_api: str) -> Iterator[Slipway]:
    """The command, run as a user would, with a home of its own; its servers are stopped afterwards."""
    command = Slipway(home, prefect_api)
    yield command
    command.stop_servers()


@pytest.fixture(scope="module")
def module_slipway(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Iterator[Slipway]:
    """The same for a module whose tests build on each other's deployments."""
    command = Slipway(tmp_path_factory.mktemp("home"), prefect_api)
    yield command
    command.stop_servers()
