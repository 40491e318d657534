"""State files that are lost or damaged: the next deploy needs no hand, and one server runs afterwards."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny_server
from damages import DAMAGES
from prefect.logging import disable_run_logger

from configs.schema.pipeline import DeploymentConfig, ServerConfig, SmokeTestConfig
from tasks import deployment
from tasks.core.artifacts import ContainerLimits, ModelVersion, Recovery, Run
from tasks.core.errors import EnvironmentFault, JournalUnreadable, SmokeTestFailed, error_named
from tasks.deployment import deploy
from tasks.deploys import interrupted_deploys, rollouts, undoing
from tasks.preflight import serving_target
from tasks.servers import model_servers, model_status, server_process
from tasks.state import deploy_journal, model_versions, server_records, state_files
from tasks.state.deploy_journal import Journal

DEPLOYMENT = DeploymentConfig(target="process", grpc_port=0, rest_port=0, load_timeout_seconds=30)


@dataclass
class Deployed:
    """A model whose newest version is live and whose deploy is not concluded yet."""

    run: Run
    program: Path

    def recover(self) -> Recovery:
        """Recover as `slipway recover` and each run do."""
        return interrupted_deploys.recover_locked(DEPLOYMENT, SmokeTestConfig(), self.run)

    def deploy(self, run_id: str) -> int:
        """Publish and deploy one more version, as a run does; return its number."""
        base, run = self.run.model_base_path, Run("small", run_id, self.run.folder.with_name(run_id),
                                                  self.run.source, self.run.model_base_path)  # fmt: skip
        target = serving_target(DEPLOYMENT, ServerConfig(insecure=True, executable=self.program), run)
        candidate = model_versions.candidate_folder(base, run_id)
        candidate.mkdir()
        (candidate / "saved_model.pb").write_bytes(b"graph")
        previous = max(model_versions.versions(base), default=None)
        journal = Journal("small", run_id, base, "prepared", previous, (), model_servers.planned(target, run))
        deploy_journal.write(journal)
        folder = model_versions.publish(candidate, base, "sequential", origin={"run_id": run_id})
        number = int(folder.name)
        deploy_journal.note(run, "published", versions=(number,))
        version = ModelVersion(number, folder, previous=previous)
        deploy.fn(version, target, DEPLOYMENT, SmokeTestConfig(), run)
        deploy_journal.note(run, "smoke-tested")
        return number

    def conclude(self) -> None:
        """Conclude the deploy that is under way."""
        journal = deploy_journal.read("small")
        assert journal is not None
        deploy_journal.conclude(journal, "committed")

    def servers(self) -> list[psutil.Process]:
        """Return the processes that serve."""
        children = psutil.Process().children()
        return [each for each in children
                if each.status() != "zombie" and str(self.program) in each.cmdline()]  # fmt: skip


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployed]:
    """Version 1 is committed; version 2 is live, and its deploy smoke-tested but not concluded."""
    monkeypatch.setattr(undoing.served_answers, "prove_again", lambda *_, **__: "answers as it should")
    run = Run("small", "r2", tmp_path / "home" / "runs" / "small" / "r2", tmp_path, tmp_path / "models")
    run.model_base_path.mkdir()
    made = Deployed(run, tiny_server.write(tmp_path / "tiny_model_server"))
    with disable_run_logger():
        try:
            made.deploy("r1")
            made.conclude()
            made.deploy("r2")
            yield made
        finally:
            for process in made.servers():
                process.kill()
                process.wait(10)


@pytest.mark.parametrize("damage", ["emptied", "cut", "one bit flipped", "unreadable", "a folder"])
def test_a_failed_deploy_is_undone_without_its_journal(
    deployed: Deployed, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that fails knows its version by the folder: the version before serves again."""
    monkeypatch.setattr(deployment, "withdraw", deployment.withdraw.fn)
    DAMAGES[damage](deploy_journal.file("small"), random.Random(damage))
    deployment.abandon(SmokeTestFailed("wrong answers"), DEPLOYMENT, SmokeTestConfig(), deployed.run)
    running = model_servers.running("small")
    assert running is not None
    assert model_status.live_version(running.rest, "small") == 1
    assert list(model_versions.withdrawn(deployed.run.model_base_path)) == [2]
    assert deploy_journal.read("small") is None


def test_a_damaged_journal_of_a_run_that_published_nothing_is_discarded(deployed: Deployed) -> None:
    """There is nothing to undo: what serves is left alone."""
    deployed.conclude()
    deploy_journal.file("small").write_bytes(b"")
    other = replace(deployed.run, run_id="r3")
    deployment.abandon(SmokeTestFailed("wrong answers"), DEPLOYMENT, SmokeTestConfig(), other)
    running = model_servers.running("small")
    assert running is not None
    assert model_status.live_version(running.rest, "small") == 2
    assert deploy_journal.read("small") is None


def test_the_error_of_a_damaged_journal_is_of_the_tree() -> None:
    """With an exit code, and no traceback of a defect."""
    assert error_named("JournalUnreadable") is JournalUnreadable


def _make_newer_throughout(values: Any) -> Any:
    """Return the JSON values as a newer release might have them: each object has a field more."""
    if isinstance(values, dict):
        return {key: _make_newer_throughout(value) for key, value in values.items()} | {"novel": [1]}
    return values


def test_a_newer_release_orphans_no_server(deployed: Deployed) -> None:
    """Unknown fields at any depth of its records are ignored: its server is found, and stopped."""
    before = server_records.read("small")
    assert before is not None
    with_limits = replace(before, limits=ContainerLimits(memory_mb=512, cpus=1, pids=64))
    journal = deploy_journal.read("small")
    assert journal is not None
    server_records.write(with_limits)
    deploy_journal.write(replace(journal, server=with_limits))
    for file in (server_records._file("small"), deploy_journal.file("small")):
        fields = json.loads(file.read_bytes())
        del fields["sha256"]
        newer = {**_make_newer_throughout(fields), "schema": 2}
        file.write_text(json.dumps({**newer, "sha256": state_files._checksum(newer)}))
    assert server_records.read("small") == with_limits
    found = deploy_journal.read("small")
    assert found is not None
    assert (found.state, found.server) == ("smoke-tested", with_limits)
    assert [each.handle for each in rollouts.stop("small")] == [before.handle]
    assert deployed.servers() == []


def test_each_flipped_bit_is_detected(tmp_path: Path) -> None:
    """Of values, keys, the schema version and the checksum itself: no damaged record is believed."""
    file = tmp_path / "record.json"
    state_files.write(file, {"number": 8, "base": "/models"})
    whole = file.read_bytes()
    expected = state_files.read(file)
    for index in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[index] ^= 1 << bit
            file.write_bytes(flipped)
            with suppress(state_files.StateFileDamaged):
                assert state_files.read(file) == expected  # a bit of the white space between the fields


def test_a_server_of_a_lost_record_is_rebuilt(deployed: Deployed) -> None:
    """With its address, flags and handle, so that `slipway stop` ends it."""
    before = server_records.read("small")
    assert before is not None
    server_records._file("small").write_bytes(b"")
    rebuilt = model_servers.running("small")
    assert rebuilt is not None
    assert (rebuilt.grpc, rebuilt.rest, rebuilt.handle) == (before.grpc, before.rest, before.handle)
    assert (rebuilt.program, rebuilt.flags) == (before.program, before.flags)
    model_servers.stop(rebuilt)
    assert deployed.servers() == []


def test_a_clock_step_loses_no_server(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil derives the start time from the boot time, which moves with the clock; the handle does not."""
    record = server_records.read("small")
    assert record is not None
    real = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: real(process) + 3600)
    assert server_process.find(record.handle) is not None


class TestJunk:
    """Entries of the base path that no run made."""

    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        """A base path with versions 1 to 3."""
        for number in (1, 2, 3):
            (tmp_path / "models" / f"{number:04d}").mkdir(parents=True)
        return tmp_path / "models"

    @pytest.mark.parametrize("name", ["99999999999999999999", str(2**63), "9" * 200])
    def test_a_number_beyond_int64_is_no_version(self, base: Path, name: str) -> None:
        """Servers ignore it, so the numbers of versions do not follow it."""
        (base / name).mkdir()
        assert model_versions.highest_ever(base) == 3

    def test_no_number_is_left_after_the_highest(self, base: Path) -> None:
        """The error names the folder and the way out."""
        (base / str(2**63 - 1)).mkdir()
        candidate = model_versions.candidate_folder(base, "r1")
        candidate.mkdir()
        with pytest.raises(EnvironmentFault, match="9223372036854775807 is the highest number"):
            model_versions.publish(candidate, base, "timestamp")

    def test_links_and_files_are_pruned(self, base: Path, tmp_path: Path) -> None:
        """A linked version leaves without its target, and files under our names do not stop the pruning."""
        shutil.move(base / "0001", tmp_path / "elsewhere")
        (base / "0001").symlink_to(tmp_path / "elsewhere")
        for name in (".candidate-x", ".canary-x", ".removing-x"):
            (base / name).write_text("a file")
        assert model_versions.prune(base, 2, set()) == (1,)
        assert (tmp_path / "elsewhere").is_dir()
        assert sorted(child.name for child in base.iterdir() if child.name != ".lock") == ["0002", "0003"]
