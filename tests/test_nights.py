"""Nights that went wrong: missed, late, or cut off; and what becomes of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from finished_runs import run_from_publish
from nightly_station import Station, end_with_children
from pipelines import written
from slipway_command import REPOSITORY
from waiting import eventually

from flows.command import recover
from tasks.deploys import interrupted_deploys
from tasks.runs import interrupted_runs, run_folders
from tasks.state import deploy_journal, model_versions, server_records
from tasks.state.deploy_journal import Journal
from tasks.state.server_records import ServerRecord

pytestmark = pytest.mark.timeout(1500)

SOME_TIME = {"training.max_steps": 6000, "training.save_checkpoints_steps": 100}


def _scheduled(station: Station, at: datetime, deployment: str = "nightly-digits", **parameters: Any) -> str:
    """Have Prefect plan a run, by default of the digits, and return its id."""
    (found,) = station.ask("deployments/filter", deployments={"name": {"any_": [deployment]}})
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": at.isoformat()}}
    run = station.ask(f"deployments/{found['id']}/create_flow_run", state=state, parameters=parameters)
    return str(run["id"])


def _state(station: Station, flow_run: str, told: str = "name") -> str:
    (run,) = station.ask("flow_runs/filter", flow_runs={"id": {"any_": [flow_run]}})
    return str(run["state"][told])


def _ended(station: Station, flow_runs: list[str]) -> list[str]:
    """Return the names of the runs' states, once all are final."""
    found = station.ask("flow_runs/filter", flow_runs={"id": {"any_": flow_runs}})
    final = all(run["state"]["type"] in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED") for run in found)
    return [str(run["state"]["name"]) for run in found] if final else []


def test_missed_nights_are_one_run(station: Station) -> None:
    """Three nights were planned while no worker was there: when one comes back, one is run."""
    now = datetime.now(timezone.utc)
    before = set(station.slipway.home.glob("runs/digits/*/verdict.json"))
    missed = [_scheduled(station, now - timedelta(days=days)) for days in (3, 2, 1)]
    with station.worker("back"):
        states = eventually(lambda: _ended(station, missed), seconds=600, every=0.5)
    assert sorted(states) == ["Cancelled", "Cancelled", "Deployed"]
    assert len(set(station.slipway.home.glob("runs/digits/*/verdict.json")) - before) == 1


def test_somebody_on_call_rolls_back_by_the_deployment(station: Station) -> None:
    """Restored: the version before answers; to one that is not there it fails, and names those that are."""
    for _ in range(2):
        assert run_from_publish(station.slipway).exit_code == 0
    *_, before, live = station.slipway.versions("digits")
    now = datetime.now(timezone.utc)
    with station.worker("on-call"):
        done = _scheduled(station, now, "roll-back")
        assert eventually(lambda: _ended(station, [done]), seconds=600, every=0.5) == ["Restored"]
        refused = _scheduled(station, now, "roll-back", to=live)
        assert eventually(lambda: _ended(station, [refused]), seconds=600, every=0.5) == ["Failed"]
    assert station.slipway.versions("digits")[-1] == before
    (run,) = station.ask("flow_runs/filter", flow_runs={"id": {"any_": [done]}})
    assert set(run["tags"]) == {"digits", "on-call", "slipway"}
    assert f"version {before}" in _state(station, done, "message")
    assert f"has no version {live} before {before}" in _state(station, refused, "message")
    assert run["name"].startswith("roll back digits 20")
    tasks = station.ask("task_runs/filter", flow_runs={"id": {"any_": [done]}})
    assert {each["name"] for each in tasks} == {
        "choose the version of digits to serve again", f"withdraw version {live} of digits",
    }  # fmt: skip
    made = station.ask("artifacts/filter", artifacts={"flow_run_id": {"any_": [done]}})
    assert "digits-verdict" in {each["key"] for each in made}


def test_a_run_survives_its_worker(station: Station) -> None:
    """kill -9 of the worker alone, which read the run's output: the run deploys, with nobody to print to."""
    before = set(station.slipway.home.glob("runs/digits/[0-9]*"))
    flow_run = _scheduled(station, datetime.now(timezone.utc), overrides=SOME_TIME)
    with station.worker("killed") as worker:
        (folder,) = eventually(
            lambda: set(station.slipway.home.glob("runs/digits/[0-9]*")) - before, seconds=400
        )
        eventually(lambda: len(list(folder.glob("checkpoints/model.ckpt-*.index"))) > 2, seconds=400)
        worker.kill()
        worker.wait(30)
        assert eventually(lambda: _ended(station, [flow_run]), seconds=600, every=0.5) == ["Deployed"]
    assert json.loads((folder / "verdict.json").read_text())["outcome"] == "deployed"


def _taken(station: Station, flow_run: str) -> bool:
    return _state(station, flow_run, "type") == "PENDING"


def _begins(station: Station, flow_run: str) -> bool:
    """Return whether the flow run is running; its process is about to take the pipeline's lock."""
    return _state(station, flow_run, "type") == "RUNNING"


@pytest.mark.parametrize(
    ("deployment", "moment"),
    [("nightly-digits", _taken), ("nightly-digits", _begins), ("roll-back", _taken)],
    ids=["a night, taken by the worker", "a night, running", "a rollback, taken by the worker"],
)
def test_killed_before_its_first_stage(
    station: Station, deployment: str, moment: Callable[[Station, str], bool]
) -> None:
    """Worker and run are killed: `slipway recover` marks the flow run as crashed and starts a night again."""
    before = set(station.slipway.home.glob("runs/digits/[0-9]*"))
    parameters = {"dry_run": True} if deployment == "nightly-digits" else {}
    flow_run = _scheduled(station, datetime.now(timezone.utc), deployment, **parameters)
    with station.worker("doomed") as worker:
        eventually(lambda: moment(station, flow_run), seconds=400, every=0.02)
        end_with_children(worker)
    state, kind = _state(station, flow_run), _state(station, flow_run, "type")
    assert kind in ("PENDING", "RUNNING")
    if set(station.slipway.home.glob("runs/digits/[0-9]*")) != before:
        pytest.skip("it had begun: TestKilled")
    early = station.slipway("recover")
    assert (early.exit_code, early.output) == (0, "no run was killed: nothing to recover\n")
    done = station.slipway("recover", "--start-timeout", "1")
    assert done.exit_code == 0, done.output
    assert f"was {state} but never began: marked as Crashed" in done.output
    assert _state(station, flow_run) == "Crashed"
    if deployment == "roll-back":
        assert "goes on" not in done.output, "somebody may have rolled back by other means since"
        return
    again = done.output.split(" goes on as flow run ")[1].split("(")[1].split(")")[0]
    with station.worker("next"):
        assert eventually(lambda: _ended(station, [again]), seconds=600, every=0.5) == ["Checked"]


class TestKilled:
    """The worker, the flow and the trainer are killed at once, as when the machine dies."""

    @pytest.fixture(scope="class")
    def killed(self, station: Station) -> str:
        """The id of a flow run that was killed while it trained."""
        before = set(station.slipway.home.glob("runs/digits/[0-9]*"))
        flow_run = _scheduled(station, datetime.now(timezone.utc), overrides=SOME_TIME)
        with station.worker("doomed") as worker:
            (folder,) = eventually(
                lambda: set(station.slipway.home.glob("runs/digits/[0-9]*")) - before, seconds=400
            )
            eventually(lambda: len(list(folder.glob("checkpoints/model.ckpt-*.index"))) > 2, seconds=400)
            end_with_children(worker)
        return flow_run

    def test_it_goes_on_and_is_told(self, station: Station, killed: str) -> None:
        """Running still, says Prefect; recovered, it is Crashed, and one new flow run ends it, deployed."""
        assert _state(station, killed) == "Running"
        told = [station.slipway("recover"), station.slipway("recover", "configs/digits")]
        assert [each.exit_code for each in told] == [0, 0], told[0].output + told[1].output
        assert "was Running: marked as Crashed" in told[0].output
        assert _state(station, killed) == "Crashed"
        goes_on = [each.output.split(" goes on as flow run ")[1] for each in told]
        assert goes_on[0] == goes_on[1], "recovered twice"
        with station.worker("next"):
            resumed = goes_on[0].split("(")[1].split(")")[0]
            (state,) = eventually(lambda: _ended(station, [resumed]), seconds=600, every=0.5)
        assert state == "Deployed"
        verdict = run_of_last_night(station.slipway.home)
        proved = {stage["name"]: stage["summary"] for stage in verdict["stages"]}
        assert "resumed from step" in proved["train"]
        assert proved["ingest"].startswith("from before: ")
        again = station.slipway("recover")
        assert (again.exit_code, again.output) == (0, "no run was killed: nothing to recover\n")


def run_of_last_night(home: Path) -> dict[str, Any]:
    """Return the newest verdict of the digits."""
    return dict(json.loads(max(home.glob("runs/digits/*/verdict.json")).read_text()))


HOLD = """
import sys
from configs.loading.pipelines import load_pipeline
from tasks.runs import run_folders
pipeline = load_pipeline(sys.argv[1])
with run_folders.opened(pipeline, run_folders.describe(pipeline, "r1")):
    print("held", flush=True)
    sys.stdin.read()
"""


class TestFound:
    """Which runs are taken for killed."""

    @pytest.fixture
    def holder(self, tmp_path: Path, home: Path) -> Any:
        """A process that is at work on the pipeline `small`."""
        folder = written(tmp_path / "small", {}).folder
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)], cwd=REPOSITORY, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()
        process.wait(30)

    def test_one_at_work_is_not(self, holder: subprocess.Popen[str]) -> None:
        """Its process holds the lock."""
        assert interrupted_runs.found() == []

    def test_one_whose_process_is_gone_is(self, holder: subprocess.Popen[str], tmp_path: Path) -> None:
        """With what it was started from; of another pipeline none is found."""
        holder.kill()
        holder.wait(30)
        (killed,) = interrupted_runs.found()
        assert (killed.pipeline, killed.run_id) == ("small", "r1")
        assert killed.file == tmp_path / "small" / "pipeline.yaml"
        assert killed.began
        assert interrupted_runs.found("small") == [killed]
        assert interrupted_runs.found("other") == []

    def test_one_that_ended_is_not(self, holder: subprocess.Popen[str]) -> None:
        """Whatever it ended in."""
        assert holder.stdin is not None
        holder.stdin.close()
        holder.wait(30)
        assert interrupted_runs.found() == []

    @pytest.mark.parametrize("content", ["", "{}", "[1]", '{"run_id": "r1", "pid": 1}'])
    def test_a_note_that_says_too_little_is_not(self, home: Path, content: str) -> None:
        """As of another release, or cut off by lost power."""
        folder = home / "runs" / "small"
        folder.mkdir(parents=True)
        (folder / ".running").write_text(content)
        assert interrupted_runs.found() == []

    def test_one_that_had_not_begun_is_forgotten(
        self, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Without a configuration of its own there is nothing to go on with."""
        pipeline = written(tmp_path / "small", {})
        run_folders.note(home / "runs" / "small", pipeline, run_folders.describe(pipeline, "r1"))
        assert recover.recover(None) == 0
        assert "there is nothing to go on with" in capsys.readouterr().out
        assert interrupted_runs.found() == []

    def test_its_deploy_is_settled_at_once(
        self, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A version that was published and never proven does not wait for the next night to be withdrawn."""
        pipeline = written(tmp_path / "small", {})
        run = run_folders.describe(pipeline, "r1")
        for number in (7, 8):
            (run.model_base_path / str(number)).mkdir(parents=True)
        run_folders.note(home / "runs" / "small", pipeline, run)
        deploy_journal.write(Journal("small", "r1", run.model_base_path, "published", 7, (8,)))
        assert recover.recover(None) == 0
        assert "run r1 was killed, its deploy published: version 8 is withdrawn" in capsys.readouterr().out
        assert list(model_versions.versions(run.model_base_path)) == [7]
        assert not deploy_journal.file("small").exists()

    @pytest.mark.parametrize("named", [True, False])
    def test_a_deploy_that_no_killed_run_left_is_settled_too(
        self, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str], named: bool
    ) -> None:
        """As of a rollback that was killed, or of an undoing that failed; by name, or among all."""
        pipeline = written(tmp_path / "small", {"export": {"model_base_path": "../models"}})
        with run_folders.opened(pipeline, run_folders.describe(pipeline, "r1")):
            pass  # it ended, and its configuration is kept
        base = pipeline.model_base_path
        for number in (7, 8):
            (base / str(number)).mkdir(parents=True)
        deploy_journal.write(Journal("small", "r2", base, "undoing", 7, (8,)))
        assert recover.recover(str(pipeline.file) if named else None) == 0
        assert "small: run r2 was killed, its deploy undoing: version 8 is withd" in capsys.readouterr().out
        assert list(model_versions.versions(base)) == [7]
        assert recover.recover(None) == 0
        assert capsys.readouterr().out == "no run was killed: nothing to recover\n"

    def test_a_server_that_is_gone_is_looked_after_too(self, tmp_path: Path, home: Path) -> None:
        """As after a reboot, with no run killed; one that was stopped on purpose, or is another's, is not."""
        pipeline = written(tmp_path / "small", {})
        with run_folders.opened(pipeline, run_folders.describe(pipeline, "r1")):
            assert interrupted_deploys.left() == {}
        gone = ServerRecord("small", "process", "program", "i", "/served", (), 1, 2, "999999999:1.0")
        server_records.write(gone)
        (found,) = interrupted_deploys.left().values()
        assert (found.config.name, found.model_base_path) == ("small", Path("/served"))
        server_records.write(replace(gone, target="external", host="nobody.invalid"))
        assert interrupted_deploys.left() == {}
        server_records.mark_stopped(gone)
        assert interrupted_deploys.left() == {}

    def test_an_unreadable_configuration_keeps_no_other_pipeline_from_it(
        self, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It is reported with its own exit code; the others are recovered."""
        for name in ("broken", "small"):
            pipeline = written(tmp_path / name, {"name": name})
            with run_folders.opened(pipeline, run_folders.describe(pipeline, "r1")):
                pass
            base = tmp_path / f"{name}-models"
            base.mkdir()
            deploy_journal.write(Journal(name, "r1", base, "prepared", None, ()))
        (home / "runs" / "broken" / "r1" / "config.yaml").write_text("name: [")
        assert recover.recover(None) == 2
        told = capsys.readouterr().out
        assert "broken: not recovered: " in told and "config.yaml" in told
        assert "small: run r1 was killed, its deploy prepared" in told
        assert not deploy_journal.file("small").exists()

    def test_one_that_is_under_way_is_left_alone(
        self, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Its journal is there while it deploys: that is nothing to recover."""
        pipeline = written(tmp_path / "small", {})
        run = run_folders.describe(pipeline, "r1")
        with run_folders.opened(pipeline, run), deploy_journal.held("small", timeout_seconds=0):
            deploy_journal.write(Journal("small", "r1", run.model_base_path, "prepared", 7))
            assert recover.recover(None) == 0
        assert capsys.readouterr().out == "no run was killed: nothing to recover\n"

    def test_a_deploy_that_cannot_be_settled_is_told(
        self, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Somebody deploys at this moment; Prefect is told of the killed run all the same."""
        pipeline = written(tmp_path / "small", {})
        run_folders.note(home / "runs" / "small", pipeline, run_folders.describe(pipeline, "r1"))
        with deploy_journal.held("small", timeout_seconds=0):
            assert recover.recover(None) == 0
        said = capsys.readouterr().out
        assert "its deploy is not settled: " in said
        assert "there is nothing to go on with" in said
