"""What tests share: a home of their own, one Prefect server, and the rule about Docker."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nightly_station
import pytest
import selections
from free_ports import free_port
from hypothesis import settings
from made_once import SHARED
from slipway_command import Slipway

# How long an example takes says more of the machine than of the code.
settings.register_profile("slipway", deadline=None)
settings.load_profile("slipway")

SLOW = (
    "test_benchmarks", "test_best_checkpoint", "test_cluster", "test_cluster_across",
    "test_cluster_containers", "test_compose", "test_docker_faults", "test_faults", "test_graph_pipelines",
    "test_model_server_copies", "test_model_server_lifecycle", "test_model_server_policies",
    "test_model_server_processes", "test_model_server_soak", "test_model_server_swaps", "test_night_faults",
    "test_operations", "test_relay_benchmark", "test_resume", "test_saved_model_cli", "test_strategies",
    "test_training", "test_warm_start",
)  # fmt: skip
"""Modules whose tests take long enough to be left out of `make test-fast`, as whole flows are."""

DOCKER = (
    "test_cluster_containers", "test_compose", "test_docker_faults", "test_docker_flow",
    "test_model_server_metrics", "test_published_servers", "test_relay_benchmark", "test_server_image",
    "test_systemd",
)  # fmt: skip
STATION = ("test_alert_delays", "test_ci_recipes", "test_nights", "test_operations", "test_trigger")
LONGEST = (
    "docker", "test_whole_flow", "test_faults", "test_night_faults", "station", "test_cluster_across",
    "test_resume", "test_browser", "test_graph_pipelines", *SLOW,
)  # fmt: skip
"""Groups that take minutes: two workers are done at the same time if none of these begins last."""

_FAST = {f"test_{name}" for name in selections.FAST}

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Share a folder between workers; isolate tests from this machine's own Prefect and state."""
    # Started in the background by a shell, pytest ignores Ctrl-C, and so would all that it starts: Prefect's
    # worker, which is sent SIGTERM, sends itself that.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "SLIPWAY_BASE_IMAGE"):
        os.environ.pop(name, None)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shared = tempfile.mkdtemp(prefix="slipway-tests-")
        os.environ[SHARED] = shared
        config.add_cleanup(lambda: shutil.rmtree(shared, ignore_errors=True))
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"


def _is_quick(item: pytest.Item) -> bool:
    """Return whether a minute is enough on a busy machine: no server of any kind is started for the test."""
    servers = {"prefect_api", "station", "models", "server", "start_server", "shelf", "world"}
    module = item.path.stem
    starts_one = servers & set(getattr(item, "fixturenames", ())) or module.startswith("test_model_server")
    return module in _FAST and not starts_one


def _why_no_docker() -> str | None:
    import docker
    from docker.errors import DockerException

    try:
        docker.from_env(timeout=10).ping()
    except DockerException as error:
        return f"no Docker engine answers: {error}"
    return None


def _why_no_browser() -> str | None:
    there = {"chromium": shutil.which("chromium"), "playwright": importlib.util.find_spec("playwright")}
    missing = [name for name, found in there.items() if found is None]
    return f"not installed: {', '.join(missing)}" if missing else None


_NEEDS = {
    "docker": ("SLIPWAY_REQUIRE_DOCKER", _why_no_docker),
    "browser": ("SLIPWAY_REQUIRE_BROWSER", _why_no_browser),
}


def _group(nodeid: str) -> str:
    """Return the name that a test shares with all that must not run at the same time as it."""
    module = Path(nodeid.partition("::")[0]).stem
    if module in DOCKER or re.search(r"[\[-]image[]-]", nodeid):
        return "docker"
    return "station" if module in STATION else module


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each group to one pytest worker whole: what its tests share is made once, images are built once.

    Not by xdist's own marks of groups: xdist 3.8 writes them where pytest 9.2 does not look.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return Groups(config, log)


def _in_order_of_groups(items: list[pytest.Item]) -> None:
    """Have those begin first that take longest."""
    ranks = {name: rank for rank, name in reversed(list(enumerate(LONGEST)))}
    items.sort(key=lambda item: ranks.get(_group(item.nodeid), len(LONGEST)))


def _refuse_strays(items: list[pytest.Item]) -> None:
    """Raise where a test would share the Docker engine with another worker's."""
    strays = [
        each.nodeid for each in items if each.get_closest_marker("docker") and _group(each.nodeid) != "docker"
    ]
    if strays:
        raise pytest.UsageError(f"asks Docker, and its module is not in conftest.DOCKER: {strays[0]}")


def _mark_extended(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that only `make test-all` runs; raise if the table names a test that does not exist."""
    names: dict[str, list[str]] = {}
    for item in items:
        name = item.nodeid.partition("::")[2]
        names.setdefault(item.path.stem, []).append(name)
        if selections.is_extended(item.path.stem, name):
            item.add_marker(pytest.mark.extended)
    if not any("::" in argument for argument in config.args):
        stale = selections.stale(names, REPOSITORY / "tests")
        if stale:
            raise pytest.UsageError(f"tests/selections.py: {stale}. Correct the entry in EXTENDED.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark slow and extended tests; skip those that lack something on this machine, except in CI."""
    _refuse_strays(items)
    _mark_extended(config, items)
    if "PYTEST_XDIST_WORKER" in os.environ:
        _in_order_of_groups(items)
    for item in items:
        if {"prefect_api", "station"} & set(getattr(item, "fixturenames", ())) or item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)
        if not item.get_closest_marker("timeout") and not _is_quick(item):
            # The first test with Docker builds an image.
            item.add_marker(pytest.mark.timeout(900 if item.get_closest_marker("docker") else 600))
    for marker, (required, why_not) in _NEEDS.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if not marked or os.environ.get(required):
            continue
        reason = why_not()
        if reason is not None:
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A $SLIPWAY_HOME that only this test has."""
    folder = tmp_path / "home"
    monkeypatch.setenv("SLIPWAY_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    """A command that a test calls in this process closes what it writes; other tests' files stay open."""
    os.umask(0o022)
    yield
    os.umask(0o022)


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
        server.wait(120)


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path, seconds: float = 600.0) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"the Prefect server did not come up:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="session")
def station(tmp_path_factory: pytest.TempPathFactory) -> Iterator[nightly_station.Station]:
    """A Prefect server with a password, and the digits deployed there; workers are for tests to start."""
    with nightly_station.opened(tmp_path_factory.mktemp("station")) as there:
        yield there


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    from playwright.sync_api import sync_playwright

    root = ["--no-sandbox"] if os.geteuid() == 0 else []  # chromium refuses root with its sandbox
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or "chromium",
            args=[*root, "--disable-dev-shm-usage", "--disable-background-networking"],
        )
        yield opened
        opened.close()
