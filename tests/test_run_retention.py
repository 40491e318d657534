"""Which runs stay on disk, and how much of them."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from slipway_command import DIGITS

from configs.loading.pipelines import Pipeline, load_pipeline
from flows.command.cli import main
from tasks.core.artifacts import Verdict
from tasks.core.errors import AlreadyRunning
from tasks.deploys import run_retention
from tasks.runs import run_folders
from tasks.state import deploy_journal
from tasks.state.deploy_journal import Journal

ENDED = Verdict("digits", "", "rejected", None, None, None, (), (), {}, None)
OLD_DAYS = 100
PIXELS = bytes(range(256)) * 64


@pytest.fixture
def digits() -> Pipeline:
    """Keep one run, and none for its age."""
    loaded = load_pipeline(DIGITS, {"runs.keep.number": 1, "runs.keep.days": 1})
    loaded.model_base_path.mkdir(parents=True)
    return loaded


def _leave(
    digits: Pipeline, run_id: str, outcome: str | None = "rejected", version: int | None = None
) -> Path:
    """Leave the folder of a run that ended long ago; without an outcome it was killed."""
    run = run_folders.describe(digits, run_id)
    (run.folder / "examples").mkdir(parents=True)
    (run.folder / "ingested").mkdir()
    (run.folder / "examples.partial").mkdir()
    (run.folder / "config.yaml").write_text("name: digits\n")
    started = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(days=int(run_id[1:]))
    (run.folder / ".started").write_text(started.isoformat())
    (run.folder / "ingested" / "all.tfrecord").write_bytes(PIXELS)
    for name in ("one", "same"):
        (run.folder / f"{name}.npz").write_bytes(PIXELS)
    if outcome is not None:
        file = run_folders.verdict_file(run)
        run_folders.write_verdict(replace(ENDED, run_id=run_id, outcome=outcome, version=version), file)
    then = time.time() - OLD_DAYS * 86_400
    for file in (*run.folder.iterdir(), run.folder):
        os.utime(file, (then, then))
    return run.folder


def _publish(digits: Pipeline, number: int, run_id: str) -> None:
    extra = digits.model_base_path / str(number) / "assets.extra"
    extra.mkdir(parents=True)
    (extra.parent / "saved_model.pb").write_bytes(b"")
    (extra / "manifest.json").write_text(json.dumps({"run_id": run_id}))


class TestRemoved:
    """By number and age, both exceeded."""

    def test_the_newest_and_the_young_stay(self, digits: Pipeline) -> None:
        """A run is removed that is neither."""
        folders = [_leave(digits, f"r{number}") for number in range(4)]
        os.utime(folders[1] / "verdict.json")
        assert run_retention.clean(digits).removed == ("r0", "r2")
        assert [folder.is_dir() for folder in folders] == [False, True, False, True]
        assert not (folders[0].parent / ".removing").exists()

    def test_nothing_is_if_so_configured(self) -> None:
        """`runs.keep: null`."""
        kept = load_pipeline(DIGITS, {"runs.keep": None})
        kept.model_base_path.mkdir(parents=True)
        folders = [_leave(kept, f"r{number}") for number in range(40)]
        assert run_retention.clean(kept).removed == ()
        assert all(folder.is_dir() for folder in folders)

    def test_by_default_thirty_stay(self) -> None:
        """Whatever their age."""
        default = load_pipeline(DIGITS)
        default.model_base_path.mkdir(parents=True)
        for number in range(32):
            _leave(default, f"r{number:02}")
        assert run_retention.clean(default).removed == ("r00", "r01")


class TestNeeded:
    """A run that something needs stays, however old."""

    @pytest.fixture(autouse=True)
    def _later_runs(self, digits: Pipeline) -> None:
        _leave(digits, "r1", "skipped")
        _leave(digits, "r9")

    def test_while_its_version_is_on_disk(self, digits: Pipeline) -> None:
        """A rollback may serve it again: by the manifest, or by the verdict if it has none."""
        _leave(digits, "r0", "deployed", 7)
        _publish(digits, 7, "r0")
        assert run_retention.clean(digits).removed == ("r1",)
        (digits.model_base_path / "7" / "assets.extra" / "manifest.json").unlink()
        assert run_retention.clean(digits).removed == ()
        (digits.model_base_path / "7").rename(digits.model_base_path / "7.withdrawn")
        assert run_retention.clean(digits).removed == ()

    def test_while_its_deploy_is_unfinished(self, digits: Pipeline) -> None:
        """Its journal names it."""
        _leave(digits, "r0", "deployed", 7)
        deploy_journal.write(Journal("digits", "r0", digits.model_base_path, "published", None))
        assert run_retention.clean(digits).removed == ("r1",)

    def test_while_it_may_be_resumed(self, digits: Pipeline) -> None:
        """Killed or failed, until a later run is deployed."""
        _leave(digits, "r0", None)
        _leave(digits, "r2", "failed")
        assert run_retention.clean(digits).removed == ("r1",)
        _leave(digits, "r8", "deployed", 8)
        assert run_retention.clean(digits).removed == ("r0", "r2", "r8")

    def test_while_the_base_path_is_not_there(self, digits: Pipeline) -> None:
        """What is not mounted may need any of them."""
        digits.model_base_path.rmdir()
        assert run_retention.clean(digits).removed == ()

    def test_the_run_under_way(self, digits: Pipeline) -> None:
        """It is not touched at all."""
        assert run_retention.clean(digits, under_way="r1").removed == ()
        assert (run_folders.describe(digits, "r1").folder / "examples.partial").is_dir()


class TestCompressed:
    """What stays of ended runs."""

    def test_examples_are_gzipped_and_copies_linked(self, digits: Pipeline) -> None:
        """TensorFlow reads the same records; unfinished files and what `ingest` wrote are gone."""
        import tensorflow as tf

        folder = _leave(digits, "r0", "deployed", 7)
        _publish(digits, 7, "r0")
        records = [bytes([number]) * 1000 for number in range(50)]
        with tf.io.TFRecordWriter(str(folder / "examples" / "train.tfrecord")) as writer:
            for record in records:
                writer.write(record)
        newest = _leave(digits, "r1")
        done = run_retention.clean(digits)
        assert done.tidied == ("r0",)
        assert done.freed_bytes > 40_000
        assert [file.name for file in (folder / "examples").iterdir()] == ["train.tfrecord.gz"]
        packed = tf.data.TFRecordDataset(str(folder / "examples" / "train.tfrecord.gz"), "GZIP")
        assert list(packed.as_numpy_iterator()) == records
        assert (folder / "one.npz").samefile(folder / "same.npz")
        assert (folder / "same.npz").read_bytes() == PIXELS
        assert not (folder / "examples.partial").exists()
        assert not (folder / "ingested").exists()
        assert (newest / "ingested").is_dir()
        assert run_retention.clean(digits).tidied == ()

    def test_what_may_be_resumed_stays_as_it_is(self, digits: Pipeline) -> None:
        """Its stages name the files."""
        folder = _leave(digits, "r0", "failed")
        (folder / "examples" / "train.tfrecord").write_bytes(PIXELS)
        _leave(digits, "r1", None)
        assert run_retention.clean(digits).tidied == ()
        assert (folder / "examples" / "train.tfrecord").read_bytes() == PIXELS


class TestCommand:
    """`slipway gc`."""

    def test_a_dry_run_only_says_so(self, digits: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
        """The same numbers, and nothing changed."""
        folders = [_leave(digits, f"r{number:02}") for number in range(31)]
        assert main(["gc", str(DIGITS), "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert "digits: would be: 1 run(s) removed, 29 compressed, 30 kept" in said
        assert said.splitlines()[-1] == "  r00"
        assert all(folder.is_dir() for folder in folders)
        assert main(["gc", str(DIGITS)]) == 0
        assert not folders[0].exists()

    def test_it_waits_for_no_run(self, digits: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
        """The lock is held while one is under way."""
        with run_folders.locked(digits):
            assert main(["gc", str(DIGITS)]) == AlreadyRunning.exit_code
        assert main(["gc", str(DIGITS)]) == 0
        assert main(["gc"]) == 2
        assert "slipway gc PIPELINE…" in capsys.readouterr().err
