"""Facts about `$SLIPWAY_HOME/runs/<pipeline>/`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import pytest
import yaml
from docker.errors import APIError
from hypothesis import given
from hypothesis import strategies as st
from pipelines import written
from prefect.logging import disable_run_logger
from slipway_command import REPOSITORY

from configs.loading.pipelines import Pipeline, load_pipeline
from flows import recorded_runs
from flows.command import terminal
from tasks.core.artifacts import Check, Endpoint
from tasks.core.errors import AlreadyRunning, ConfigError, DataError, EnvironmentFault
from tasks.deploys import interrupted_deploys
from tasks.reports import run_metrics
from tasks.runs import interrupted_runs, resumable_runs, run_folders, run_order
from tasks.runs.run_records import RunRecord

HOLDER = """\
import sys
from configs.loading.pipelines import load_pipeline
from tasks.runs import run_folders
pipeline = load_pipeline(sys.argv[1])
with run_folders.opened(pipeline, run_folders.describe(pipeline, "held")):
    print("holding", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    """A pipeline named `small`."""
    return written(tmp_path / "pipeline", {})


@contextmanager
def _held(pipeline: Pipeline) -> Iterator[subprocess.Popen[str]]:
    """Hold the pipeline's lock in another process."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(pipeline.file)], cwd=REPOSITORY, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "holding\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate()


class TestRunIds:
    """Names of runs."""

    def test_they_sort_by_time_wherever_clocks_are_put_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """They begin with UTC, which knows no hour that summer time repeats."""
        monkeypatch.setenv("TZ", "Pacific/Kiritimati")  # UTC+14
        time.tzset()
        try:
            earliest = datetime.now(timezone.utc).replace(microsecond=0)
            run_id = run_folders.new_run_id("small")
        finally:
            monkeypatch.undo()
            time.tzset()
        named = datetime.strptime(run_id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=timezone.utc)
        assert earliest <= named <= datetime.now(timezone.utc)

    def test_two_of_one_second_differ(self) -> None:
        """Microseconds keep them apart, and in order."""
        ids = [run_folders.new_run_id("small") for _ in range(8)]
        assert ids == sorted(set(ids))
        assert all(re.fullmatch(r"\d{8}-\d{6}-\d{6}", run_id) for run_id in ids)

    @pytest.mark.parametrize("chosen", ["../../x", "/tmp/x", "a/b", "..", ".running", "a\0b", "x\n"])
    def test_one_that_leads_elsewhere_is_refused(self, pipeline: Pipeline, home: Path, chosen: str) -> None:
        """It may be a parameter of a flow run, and it names a folder; nothing is made there."""
        with pytest.raises(ConfigError, match="names no folder"):
            recorded_runs._begun(str(pipeline.file), {}, chosen, None)
        assert not home.exists()

    def test_they_sort_after_those_of_a_clock_that_was_ahead(self, home: Path) -> None:
        """Whatever else lies there; two that begin at once differ all the same."""
        for name in ("20991231-235959-999999", "by-hand", "20260101-000000-000000"):
            (home / "runs" / "small" / name).mkdir(parents=True)
        ids = [run_folders.new_run_id("small") for _ in range(8)]
        assert len(set(ids)) == 8
        assert all(run_id.startswith("21000101-000000-") for run_id in ids)
        assert run_folders.new_run_id("other") < "2099"


class TestTheOrderOfRuns:
    """By when they started: a name that somebody chose sorts after every date, or before."""

    @staticmethod
    def _ran(pipeline: Pipeline, run_id: str, outcome: str | None = None) -> Path:
        run = run_folders.describe(pipeline, run_id)
        with run_folders.opened(pipeline, run):
            if outcome is not None:
                run_folders.verdict_file(run).write_text(json.dumps({"outcome": outcome, "version": 1}))
        return run.folder

    def test_the_newest_is_the_one_that_started_last(self, pipeline: Pipeline) -> None:
        """For the last verdict, since when a version serves, `--resume`, and what `slipway recover` reads."""
        self._ran(pipeline, "manual-1", "failed")
        old = self._ran(pipeline, run_folders.new_run_id("small"), "deployed")
        newest = self._ran(pipeline, "0-again", "rejected")
        assert run_folders.last_verdict("small") == {"outcome": "rejected", "version": 1}
        assert interrupted_deploys._configurations(newest.parent)[-1] == newest / "config.yaml"
        since = run_folders.serving_since("small", 1)
        assert since is not None
        assert since.timestamp() == pytest.approx((old / "verdict.json").stat().st_mtime, abs=1e-5)
        with pytest.raises(ConfigError, match=f"run {old.name} was deployed after all that failed"):
            resumable_runs.resumption(pipeline.file, "newest")
        self._ran(pipeline, "manual-0")
        assert resumable_runs.resumption(pipeline.file, "newest").run.run_id == "manual-0"

    def test_a_resumed_run_keeps_its_place(self, pipeline: Pipeline) -> None:
        """It has an older night's data: what was deployed since is newer."""
        self._ran(pipeline, "manual-1", "failed")
        self._ran(pipeline, run_folders.new_run_id("small"), "deployed")
        self._ran(pipeline, "manual-1", "failed")
        assert run_folders.last_verdict("small") == {"outcome": "deployed", "version": 1}

    def test_a_clock_that_goes_back_changes_no_order(
        self, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each start is after all before it, whatever the clock says."""
        ahead = self._ran(pipeline, "ahead")
        (ahead / ".started").write_text("2099-12-31T23:59:59.999999+00:00")
        self._ran(pipeline, "b", "rejected")
        self._ran(pipeline, "a", "failed")
        order = [folder.name for folder in run_order.oldest_first("small", "config.yaml")]
        assert order == ["ahead", "b", "a"]
        assert run_folders.new_run_id("small") > "2100"

    @pytest.mark.parametrize("damage", ["", "yesterday", "9999-99-99", "0001-01-01T00:00:00+14:00"])
    def test_a_damaged_start_is_taken_from_the_name_or_the_files(
        self, pipeline: Pipeline, damage: str
    ) -> None:
        """Of a run that has a time as its name, that; of another, when its configuration was written."""
        self._ran(pipeline, "chosen", "failed")
        run_id = run_folders.new_run_id("small")
        for folder in (self._ran(pipeline, run_id, "rejected"), run_folders.runs_folder("small") / "chosen"):
            (folder / ".started").write_text(damage)
        assert run_order.started(run_folders.runs_folder("small") / run_id) == run_order.time_in(run_id)
        assert run_folders.last_verdict("small") == {"outcome": "rejected", "version": 1}


class TestADamagedNote:
    """`.running`, which says who holds the lock, after a bit has flipped."""

    @pytest.mark.parametrize(
        "content",
        ["", "[]", "7", "{}", '{"run_id": "r1", "pid": 99999999999999999999, "file": "x"}',
         '{"run_id": "r1", "pid": 1e999, "file": "x"}', '{"run_id": "r1", "pid": -1, "file": "x"}',
         '{"run_id": "r1", "pid": 0, "file": "x"}', '{"run_id": ["r1"], "pid": "x", "file": "x"}',
         "[" * 100_000],
    )  # fmt: skip
    def test_no_run_is_under_way(self, home: Path, content: str) -> None:
        """Neither for `slipway status` nor for what looks for killed runs."""
        (home / "runs" / "small").mkdir(parents=True)
        (home / "runs" / "small" / ".running").write_text(content)
        assert run_folders.run_under_way("small") is None
        assert all(not killed.began for killed in interrupted_runs.found("small"))

    def test_a_held_lock_is_reported_without_a_name(self, pipeline: Pipeline, home: Path) -> None:
        """The error says what is known."""
        with _held(pipeline):
            (home / "runs" / "small" / ".running").write_text("[]")
            with pytest.raises(AlreadyRunning, match=r"a run of small is under way\n"):
                run_folders.opened(pipeline, run_folders.describe(pipeline, "r2")).__enter__()


class TestChosenIds:
    """A run_id that somebody gives, as a parameter of a flow run, while a run has it."""

    @pytest.fixture
    def ran(self, pipeline: Pipeline) -> Pipeline:
        """A pipeline with a run `mine` of the flow run `first`."""
        run = run_folders.describe(pipeline, "mine")
        with run_folders.opened(pipeline, run, run_folders.FlowRun("retrain", "first")):
            pass
        return pipeline

    @pytest.mark.parametrize("by", [run_folders.FlowRun("retrain", "second"), None])
    def test_one_of_a_run_that_is_there_is_refused(
        self, ran: Pipeline, monkeypatch: pytest.MonkeyPatch, by: run_folders.FlowRun | None
    ) -> None:
        """Its examples and checkpoints would be taken for this night's; to go on with it is asked for."""
        monkeypatch.setattr(recorded_runs, "_flow_run", lambda: by)
        with pytest.raises(ConfigError, match="run_id 'mine': small has such a run already") as refused:
            recorded_runs._begun(str(ran.file), {}, "mine", None)
        assert "--resume mine" in refused.value.hint
        assert recorded_runs._begun(str(ran.file), {}, "other", None)[1].run_id == "other"

    def test_the_same_flow_run_tried_again_takes_its_folder(
        self, ran: Pipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Prefect runs it with the same parameters, until another flow run went on with the run."""
        first, second = run_folders.FlowRun("retrain", "first"), run_folders.FlowRun("retrain", "second")
        monkeypatch.setattr(recorded_runs, "_flow_run", lambda: first)
        again = recorded_runs._begun(str(ran.file), {}, "mine", None)
        assert again[1].run_id == "mine"
        with run_folders.opened(*again, second):
            pass
        with pytest.raises(ConfigError, match="has such a run already"):
            recorded_runs._begun(str(ran.file), {}, "mine", None)


class TestOpened:
    """A run under way holds the pipeline's lock."""

    def test_describing_makes_nothing(self, pipeline: Pipeline, home: Path) -> None:
        """The folders are only named."""
        run = run_folders.describe(pipeline, "r1")
        assert (run.folder, run.model_base_path) == (home / "runs/small/r1", home / "models/small")
        assert not home.exists()

    def test_the_resolved_configuration_is_left(self, pipeline: Pipeline) -> None:
        """The run's folder holds a config.yaml with every default, which is a pipeline itself."""
        run = run_folders.describe(pipeline, "r1")
        with run_folders.opened(pipeline, run):
            assert run_folders.run_under_way("small") == f"run r1, pid {os.getpid()}"
        assert run_folders.run_under_way("small") is None
        assert load_pipeline(run.folder / "config.yaml").config == pipeline.config
        assert yaml.safe_load((run.folder / "config.yaml").read_text())["answers"]["samples"] == 64

    def test_it_is_its_owners_alone(self, pipeline: Pipeline) -> None:
        """It holds examples; whatever the umask."""
        run = run_folders.describe(pipeline, "r1")
        before = os.umask(0o000)
        try:
            with run_folders.opened(pipeline, run):
                pass
        finally:
            os.umask(before)
        assert run.folder.stat().st_mode & 0o777 == 0o700
        assert (run.folder.parent / ".lock").stat().st_mode & 0o777 == 0o600

    def test_no_run_is_under_way_before_the_first(self, home: Path) -> None:
        """Asking leaves nothing behind."""
        assert run_folders.run_under_way("small") is None
        assert not home.exists()

    def test_a_second_run_is_refused_with_the_first_ones_id_and_pid(self, pipeline: Pipeline) -> None:
        """It leaves no folder; the lock is free again once the first has ended, even by kill -9."""
        second = run_folders.describe(pipeline, "r2")
        with _held(pipeline) as holder:
            with pytest.raises(AlreadyRunning) as refused, run_folders.opened(pipeline, second):
                pass
            assert refused.value.message == f"a run of small is under way (run held, pid {holder.pid})"
            assert not second.folder.exists()
            assert run_folders.run_under_way("small") == f"run held, pid {holder.pid}"
            holder.send_signal(signal.SIGKILL)
            holder.wait(10)
            assert run_folders.run_under_way("small") is None
            with run_folders.opened(pipeline, second):
                assert run_folders.run_under_way("small") == f"run r2, pid {os.getpid()}"

    def test_runs_of_two_pipelines_do_not_exclude_each_other(
        self, pipeline: Pipeline, tmp_path: Path
    ) -> None:
        """The lock is the pipeline's."""
        other = written(tmp_path / "other", {"name": "other"})
        with _held(pipeline), run_folders.opened(other, run_folders.describe(other, "r1")):
            assert run_folders.run_under_way("other") is not None

    def test_an_error_frees_the_lock(self, pipeline: Pipeline) -> None:
        """Whatever ends the run."""
        run = run_folders.describe(pipeline, "r1")
        with pytest.raises(KeyboardInterrupt), run_folders.opened(pipeline, run):
            raise KeyboardInterrupt
        assert run_folders.run_under_way("small") is None

    def test_a_home_that_is_not_writable_is_told(
        self, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The message names the folder, the hint the variable."""
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "file"))
        run = run_folders.describe(pipeline, "r1")
        refusal = pytest.raises(EnvironmentFault, match=r"runs/small is not writable: Not a directory")
        with refusal as told, run_folders.opened(pipeline, run):
            pass
        assert "SLIPWAY_HOME" in told.value.hint


class TestTheReportOfARun:
    """What is reported once the verdict is known."""

    @pytest.fixture
    def broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No part of the report works, as with a Docker engine that answers 500."""

        def fail(*_: object, **__: object) -> None:
            raise APIError("500 Server Error")

        for name, function in (
            ("run_report", "write"), ("reported_verdicts", "tell"), ("prefect_artifacts", "show"),
            ("run_events", "tell"), ("served_versions", "served"),
        ):  # fmt: skip
            monkeypatch.setattr(getattr(recorded_runs, name), function, fail)

    @pytest.mark.parametrize("error", [None, DataError("no examples")])
    def test_it_neither_fails_the_run_nor_hides_its_error(
        self, pipeline: Pipeline, broken: None, error: DataError | None
    ) -> None:
        """The verdict is written, the metrics are, and each failure is a warning."""
        run = run_folders.describe(pipeline, "r1")
        run_folders.make(run)
        record = RunRecord("small", "r1", version=3, error=error)
        record.endpoint = Endpoint("small", 3, "h:1", "http://h:2", "docker", "container x", started=True)
        with disable_run_logger():
            recorded_runs._conclude(recorded_runs.RecordedRun(pipeline, run, record))
        verdict = run_folders.verdict_of("small", "r1")
        assert verdict is not None
        assert verdict["outcome"] == ("deployed" if error is None else "failed")
        assert run_metrics.file("small").is_file()

    def test_what_serves_may_be_unknown(self, broken: None, capsys: pytest.CaptureFixture[str]) -> None:
        """`slipway run` prints so, after the verdict."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(terminal.model_servers, "running", recorded_runs.served_versions.served)
            terminal._print_what_serves("small")
        assert "What serves is not known: APIError: 500 Server Error" in capsys.readouterr().out


class TestVerdicts:
    """`verdict.json`."""

    @given(
        st.dictionaries(st.text(max_size=5), st.floats(), max_size=3),
        st.none() | st.text(max_size=20),
    )
    def test_it_is_json_that_any_reader_takes(
        self, tmp_path_factory: pytest.TempPathFactory, metrics: dict[str, float], message: str | None
    ) -> None:
        """NaN and infinities are strings: bare, they would be no JSON; and no partial file is left."""
        file = tmp_path_factory.mktemp("verdict") / "deep" / "verdict.json"
        record = RunRecord("small", "r1", metrics=metrics, checks=[Check("m", "m > 0", "nan", 0.0, False)])
        record.error = ValueError(message) if message is not None else None
        run_folders.write_verdict(record.verdict(), file)
        read = json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert {name: float(value) for name, value in read["metrics"].items()} == pytest.approx(
            metrics, nan_ok=True
        )
        assert [child.name for child in file.parent.iterdir()] == ["verdict.json"]

    def test_the_newest_one_is_the_last(self, home: Path, pipeline: Pipeline) -> None:
        """Of a run that has not ended there is none."""
        assert run_folders.last_verdict("small") is None
        for run_id in ("20260102-030405-ffff", "20260102-030406-0000"):
            run = run_folders.describe(pipeline, run_id)
            run_folders.write_verdict(RunRecord("small", run_id).verdict(), run_folders.verdict_file(run))
        (home / "runs" / "small" / "20270101-000000-0000").mkdir()
        last = run_folders.last_verdict("small")
        assert last is not None and last["run_id"] == "20260102-030406-0000"
