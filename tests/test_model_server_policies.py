"""Which versions are served: policies, and the names that directories may have."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_server_fixtures import NAME, Models, RunningServer, StartServer, wait_until

pytest_plugins = ["model_server_fixtures"]

# ruff: noqa: E402 (the protos import all of TensorFlow)
from model_server_lives import (
    AVAILABLE,
    END,
    answer,
    config,
    entry,
    inference_error,
    reload,
    statuses,
    wait_for_available,
)

from tasks.state import model_versions, published_versions


class Shelf:
    """A server of model "m", of which versions 1 to 3 are on disk."""

    def __init__(self, server: RunningServer, root: Path, models: Models) -> None:
        self.server = server
        self.root = root
        self.base_path = root / "m"
        self.models = models

    def serve(self, policy: str) -> None:
        reload(self.server, config(entry("m", self.base_path, policy)))

    def wait_for(self, *numbers: int) -> None:
        wait_for_available(self.server, list(numbers), "m")


@pytest.fixture(scope="module")
def shared_shelf(
    models: Models, start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> Shelf:
    root = tmp_path_factory.mktemp("shelf")
    for version in (1, 2, 3):
        models.publish(root / "m", version)
    file = root / "models.config"
    file.write_text(config(entry("m", root / "m")))
    return Shelf(start_server(root, f"--model_config_file={file}"), root, models)


@pytest.fixture
def shelf(shared_shelf: Shelf) -> Iterator[Shelf]:
    """Versions 1 to 3 on disk, and the latest in service, before and after each test."""
    yield shared_shelf
    for child in list(shared_shelf.base_path.iterdir()):
        if child.name not in ("1", "2", "3"):
            shutil.rmtree(child)
    shared_shelf.serve("")
    shared_shelf.wait_for(3)


@pytest.mark.parametrize(
    ("policy", "numbers"),
    [
        ("latest { num_versions: 2 }", (3, 2)),
        ("latest { num_versions: 0 }", (3,)),
        ("latest { }", (3,)),
        ("latest { num_versions: 9 }", (3, 2, 1)),
        ("all { }", (3, 2, 1)),
        ("specific { versions: 1 }", (1,)),
        ("specific { versions: 3 versions: 1 }", (3, 1)),
    ],
)
def test_a_policy_says_which_versions_are_served(shelf: Shelf, policy: str, numbers: tuple[int, ...]) -> None:
    """Each by its number; a request without one gets the highest; the others are not found."""
    shelf.serve(policy)
    shelf.wait_for(*numbers)
    assert [answer(shelf.server, "m", version=number) for number in numbers] == list(numbers)
    assert answer(shelf.server, "m") == numbers[0]
    for number in {1, 2, 3} - set(numbers):
        assert inference_error(shelf.server, "m", version=number) == (
            "NOT_FOUND", f"Servable not found for request: Specific(m, {number})",
        )  # fmt: skip


def test_a_specific_version_that_is_not_there_is_logged(shelf: Shelf) -> None:
    """The others are served; where none is there, what was served stays."""
    shelf.serve("specific { versions: 2 versions: 7 }")
    shelf.wait_for(2)
    shelf.server.wait_for_log(
        "Version 7 of servable m, which was requested to be served as a 'specific' version in the servable's "
        "version policy, was not found in the file system"
    )
    shelf.serve("specific { versions: 8 }")
    log = shelf.server.wait_for_log("Version 8 of servable m, which was requested")
    assert "Version 2 stays in service" in log
    assert answer(shelf.server, "m") == 2


def test_the_latest_versions_move_up_and_down(shelf: Shelf) -> None:
    """A new version pushes the lowest out; a withdrawn one lets the next lower in."""
    shelf.serve("latest { num_versions: 2 }")
    shelf.wait_for(3, 2)
    shelf.models.publish(shelf.base_path, 4)
    shelf.wait_for(4, 3)
    (shelf.base_path / "4").rename(shelf.base_path / "4.denied")
    shelf.wait_for(3, 2)
    (shelf.base_path / "4.denied").rename(shelf.base_path / "4")
    shelf.wait_for(4, 3)
    assert answer(shelf.server, "m", version=4) == 4


def test_only_int64_names_are_versions(shelf: Shelf) -> None:
    """Leading zeros and signs count, anything else in the name makes it none."""
    version = shelf.models.store / "5"
    for name in ("temp-9", "9.denied", "9a", "0x9", "9 ", "99999999999999999999", "-12", "007"):
        shutil.copytree(version, shelf.base_path / name)
    (shelf.base_path / "08").mkdir()
    shelf.serve("all { }")
    shelf.wait_for(7, 3, 2, 1, -12)
    assert not [number for number, *_ in statuses(shelf.server, "m") if number > 7]


def test_of_two_names_for_one_number_one_wins(shelf: Shelf) -> None:
    """The later one by name, as in the official server, and a warning names both."""
    shutil.copytree(shelf.models.store / "2", shelf.base_path / "0006")
    shutil.copytree(shelf.models.store / "4", shelf.base_path / "6")
    shelf.wait_for(6)
    shelf.server.wait_for_log(
        "Duplicate version directories detected. Version 6 will be loaded from 6, 0006 will be ignored."
    )
    code, said = shelf.server.post("/v1/models/m:predict", {"instances": [5.0]})
    assert (code, said) == (200, {"predictions": [7.5]}), "the weights of version 4"


def test_an_emptied_base_path_may_unload_the_model(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """As in the official server, if MODEL_SERVER_UNLOAD_WHEN_EMPTY asks for it; a missing one never does."""
    base_path = tmp_path / "m"
    models.publish(base_path, 1)
    server = start_server(base_path, MODEL_SERVER_UNLOAD_WHEN_EMPTY="true")
    base_path.rename(tmp_path / "elsewhere")
    server.wait_for_log("Could not find base path")
    assert answer(server) == 1
    base_path.mkdir()
    wait_for_available(server, [])
    assert statuses(server) == [(1, END, "")]
    assert inference_error(server)[0] == "NOT_FOUND"
    base_path.rmdir()
    (tmp_path / "elsewhere").rename(base_path)
    wait_until(lambda: statuses(server) == [(1, AVAILABLE, "")], "version 1", lambda: server.log)
    assert answer(server) == 1


class TestPublishedOnly:
    """MODEL_SERVER_PUBLISHED_ONLY=true, with base paths as the pipeline's `publish` makes them."""

    @pytest.fixture
    def base_path(self, models: Models, tmp_path: Path) -> Path:
        """Version 1 is published."""
        self._publish(models, tmp_path / "m", 1)
        return tmp_path / "m"

    def _publish(self, models: Models, base_path: Path, model: int) -> int:
        candidate = models.publish(base_path, model).rename(base_path / ".candidate-r")
        return int(model_versions.publish(candidate, base_path, "sequential", published_only=True).name)

    def test_a_copied_folder_is_not_served(
        self, models: Models, start_server: StartServer, base_path: Path
    ) -> None:
        """Neither another model, nor a copy of the published one; the log says why, and what to do."""
        server = start_server(base_path, MODEL_SERVER_PUBLISHED_ONLY="true")
        models.publish(base_path, 5).rename(base_path / "7")
        shutil.copytree(base_path / "0001", base_path / "8")
        server.wait_for_log(f"{base_path / '7'} is not served: no run published it")
        server.wait_for_log(f"{base_path / '8'} is not served: no run published it")
        server.wait_for_log("Remove it and let a run publish that model, or set MODEL_SERVER_PUBLISHED_ONLY")
        assert self._publish(models, base_path, 2) == 9
        wait_until(lambda: _served(server) == [9], "version 9", lambda: server.log)

    def test_a_withdrawn_version_that_somebody_puts_back_is_not_served(
        self, models: Models, start_server: StartServer, base_path: Path
    ) -> None:
        """It was withdrawn for a reason."""
        assert self._publish(models, base_path, 2) == 2
        hidden = model_versions.withdraw(base_path, 2)
        assert hidden is not None
        hidden.rename(base_path / "0002")
        server = start_server(base_path, MODEL_SERVER_PUBLISHED_ONLY="true")
        assert _served(server) == [1]

    @pytest.mark.parametrize("damage", ["removed", "cut", "one digit of a digest"])
    def test_what_serves_stays_while_the_list_is_damaged(
        self, models: Models, start_server: StartServer, base_path: Path, damage: str
    ) -> None:
        """Nothing is unloaded for it; once the pipeline has rebuilt the list, new versions are taken."""
        self._publish(models, base_path, 2)
        server = start_server(base_path, MODEL_SERVER_PUBLISHED_ONLY="true")
        file = base_path / ".published"
        text = file.read_text()
        if damage == "removed":
            file.unlink()
        elif damage == "cut":
            file.write_text(text[:40])
        else:
            digest = published_versions.digest(base_path / "0002")
            file.write_text(text.replace(digest, digest[:-1] + ("0" if digest[-1] != "0" else "1")))
        server.wait_for_log("is missing" if damage == "removed" else "is damaged")
        assert _served(server) == [2]
        assert self._publish(models, base_path, 4) == 3
        wait_until(lambda: _served(server) == [3], "version 3", lambda: server.log)
        assert sorted(model_versions.published(base_path)) == [1, 2, 3]

    @pytest.mark.parametrize("damage", ["removed", "emptied"])
    def test_a_start_without_the_list_serves_what_is_sealed(
        self, models: Models, start_server: StartServer, base_path: Path, damage: str
    ) -> None:
        """As after a reboot: what was served is served again; a folder without a list of its files is not."""
        models.publish(base_path, 5).rename(base_path / "7")
        file = base_path / ".published"
        file.unlink() if damage == "removed" else file.write_text("")
        server = start_server(base_path, MODEL_SERVER_PUBLISHED_ONLY="true")
        assert _served(server) == [1]
        server.wait_for_log("This start takes the versions that have a SHA256SUMS")
        self._publish(models, base_path, 2)
        wait_until(lambda: _served(server) == [8], "version 8", lambda: server.log)


def _served(server: RunningServer) -> list[int]:
    return [number for number, state, _ in statuses(server) if state == AVAILABLE]


@pytest.mark.parametrize(("seconds", "sees_more"), [(0, False), (-1, None)])
def test_the_disk_may_be_looked_at_once_or_never(
    models: Models, start_server: StartServer, tmp_path: Path, seconds: int, sees_more: bool | None
) -> None:
    """--file_system_poll_wait_seconds: 0 looks when a model is configured; below 0, nothing is ever found."""
    models.publish(tmp_path, 1)
    server = start_server(tmp_path, f"--file_system_poll_wait_seconds={seconds}", wait=sees_more is not None)
    if sees_more is None:
        wait_until(lambda: _listed(server), "REST", lambda: server.log)
        assert server.get("/readyz")[0] == 503
        return
    models.publish(tmp_path, 2)
    reload(server, config(entry(NAME, tmp_path), entry("other", tmp_path)))
    wait_for_available(server, [2], "other")
    assert answer(server) == 1


def _listed(server: RunningServer) -> bool:
    try:
        return server.get("/v1/models")[0] == 200
    except OSError:
        return False
