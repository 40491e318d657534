"""Versions that are being written, are broken, or are mended: none is served before it is whole."""

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
    LOADING,
    START,
    answer,
    config,
    entry,
    statuses,
    wait_for_available,
)

CHUNK_BYTES = 400


@pytest.fixture(scope="module")
def patient(
    models: Models, start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunningServer, Path]:
    """Version 1 of "slow" and "gone" in service, and 8 seconds that new files must stand still."""
    root = tmp_path_factory.mktemp("patient")
    for name in ("slow", "gone"):
        (root / name).mkdir()
        (root / name / "1").symlink_to(models.store / "1")  # whose files have stood still for a while
    file = root / "models.config"
    file.write_text(config(*(entry(name, root / name) for name in ("slow", "gone"))))
    flags = (f"--model_config_file={file}", "--max_num_load_retries=0")
    return start_server(root, *flags, MODEL_SERVER_SETTLE_SECONDS="8"), root


def chunks(source: Path, target: Path, files: list[str]) -> Iterator[None]:
    """Copy file by file, a part at a time, as a slow copy over a network does."""
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        content = (source / name).read_bytes()
        for end in range(0, len(content) + CHUNK_BYTES, CHUNK_BYTES):
            (target / name).write_bytes(content[:end])
            yield


def test_a_slow_copy_is_not_loaded_before_it_has_ended(
    patient: tuple[RunningServer, Path], models: Models
) -> None:
    """saved_model.pb is there from the first moment, the variables grow: not one try is made meanwhile."""
    server, target = patient[0], patient[1] / "slow" / "2"
    source = models.store / "2"
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
    names.remove("saved_model.pb")
    target.mkdir()
    shutil.copy(source / "saved_model.pb", target)
    wait_until(lambda: statuses(server, "slow")[0][:2] == (2, START), "version 2", lambda: server.log)
    for _ in chunks(source, target, names):
        assert statuses(server, "slow") == [(2, START, ""), (1, AVAILABLE, "")]
        assert answer(server, "slow") == 1
    wait_for_available(server, [2], "slow")
    assert answer(server, "slow") == 2
    assert server.log.count("model slow version 2: loading from") == 1
    assert "failed to load" not in server.log


def test_a_version_that_is_withdrawn_while_it_settles_is_forgotten(
    patient: tuple[RunningServer, Path], models: Models
) -> None:
    """It ends without a try."""
    server, base_path = patient[0], patient[1] / "gone"
    models.publish(base_path, 3)
    wait_until(lambda: statuses(server, "gone")[0][:2] == (3, START), "version 3", lambda: server.log)
    (base_path / "3").rename(base_path / "3.denied")
    wait_until(lambda: statuses(server, "gone")[0] == (3, END, ""), "its end", lambda: server.log)
    assert "model gone version 3: loading" not in server.log


def test_a_broken_version_holds_up_no_other_model(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """With one thread to load, while it awaits its next try, others get new versions; mended, it loads."""
    for name in ("a", "b"):
        models.publish(tmp_path / name, 1)
    file = tmp_path / "models.config"
    file.write_text(config(entry("a", tmp_path / "a"), entry("b", tmp_path / "b")))
    server = start_server(
        tmp_path,
        f"--model_config_file={file}",
        "--num_load_threads=1",
        "--num_unload_threads=1",
        "--max_num_load_retries=100000",
        "--load_retry_interval_micros=300000000",
    )
    candidate = shutil.copytree(models.store / "2", tmp_path / "a" / "2.candidate")
    (candidate / "saved_model.pb").write_bytes(b"no SavedModel")
    candidate.rename(tmp_path / "a" / "2")
    server.wait_for_log("model a version 2: failed to load, try 1 of 100001")
    assert statuses(server, "a")[0][:2] == (2, LOADING)
    assert answer(server, "a") == 1
    models.publish(tmp_path / "b", 2)
    wait_for_available(server, [2], "b")
    assert answer(server, "b") == 2
    # Without waiting for the five minutes between two tries:
    shutil.copy(models.store / "2" / "saved_model.pb", tmp_path / "a" / "2")
    wait_for_available(server, [2], "a")
    assert answer(server, "a") == 2


def test_a_version_that_failed_for_good_is_still_tried_again(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """What it needs may lie outside its files: here a directory that its variables are a link to."""
    models.publish(tmp_path, 1)
    server = start_server(tmp_path, "--max_num_load_retries=1", "--load_retry_interval_micros=1000")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    candidate = shutil.copytree(models.store / "2", tmp_path / "2.candidate")
    (candidate / "variables").rename(elsewhere / "not-mounted")
    (candidate / "variables").symlink_to(elsewhere / "mounted")
    candidate.rename(tmp_path / "2")
    server.wait_for_log("version 2: failed to load, try 2 of 2")
    wait_until(lambda: statuses(server)[0][:2] == (2, END), "its end", lambda: server.log)
    server.wait_for_log("version 2: failed to load, try 3")
    assert statuses(server)[0][1] == END, "while it is tried after its end, the status does not flap"
    assert answer(server) == 1
    (elsewhere / "not-mounted").rename(elsewhere / "mounted")
    wait_for_available(server, [2])
    assert answer(server) == 2


def test_the_next_version_replaces_a_broken_one(
    models: Models, start_server: StartServer, tmp_path: Path
) -> None:
    """The broken one ends with its error; the version before it served throughout."""
    models.publish(tmp_path, 1)
    server = start_server(tmp_path, "--max_num_load_retries=100", "--load_retry_interval_micros=100000")
    candidate = shutil.copytree(models.store / "2", tmp_path / "2.candidate")
    shutil.rmtree(candidate / "variables")
    candidate.rename(tmp_path / "2")
    server.wait_for_log("version 2: failed to load, try 2")
    assert answer(server) == 1
    models.publish(tmp_path, 3)
    wait_for_available(server, [3])
    (_, two, one) = statuses(server)
    assert two[:2] == (2, END)
    assert "variables are missing" in two[2]
    assert one == (1, END, "")
    code, status = server.get(f"/v1/models/{NAME}/versions/2")
    assert code == 200
    assert status["model_version_status"][0]["status"]["error_code"] == "NOT_FOUND"
