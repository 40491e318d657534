"""`slipway plan`: what a run would do, found out without doing any of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pipelines import DIGITS, written
from test_version_checksums import published

from configs.loading.pipelines import Pipeline
from flows.command.cli import main
from tasks.deploys.planning import Plan, plan

GATES = {
    "min_examples": 100, "limits": {"x": {"max_missing": 0.1}}, "unchanged": "skip",
    "drift": {"limit": 0.2, "features": {"y": None}},
}  # fmt: skip


def small(folder: Path, **config: Any) -> Pipeline:
    """A pipeline with gates of every kind, whose versions are in the folder beside it."""
    data = {"files": ["*.tfrecord"], "features": {"x": "float32[2]"}, "label": {"y": "int64"}, "gates": GATES}
    evaluation = {
        "thresholds": {"accuracy": {"min": 0.9}}, "changes": {"loss": {"max_rise": "5%"}},
        "slices": ["y"], "by_slice": {"thresholds": {"accuracy": {"min": 0.5}}},
    }  # fmt: skip
    export = {"model_base_path": str(folder / "models"), "version_names": "sequential", "keep_versions": 2}
    return written(folder / "small", {"data": data, "evaluation": evaluation, "export": export, **config})


def does(planned: Plan, stage: str) -> str:
    return next(each.does for each in planned.stages if each.name == stage)


def test_the_first_night_has_nothing_to_go_back_to(tmp_path: Path) -> None:
    """Number one, no baseline; a failure stops the server."""
    planned = plan(small(tmp_path))
    assert (planned.next_version, planned.baseline, planned.rollback_to) == ("0001", None, None)
    assert planned.resumable is planned.under_way is None
    assert does(planned, "smoke-test").endswith("a failure withdraws the version and stops the server")
    assert does(planned, "ingest").startswith("0 file(s), 0.0 MB, match *.tfrecord")


def test_later_nights_are_compared_with_what_is_served(tmp_path: Path) -> None:
    """The next number, the version that would answer again, and those that leave the disk."""
    for run_id in ("r1", "r2", "r3"):
        published(tmp_path / "models", run_id)
    planned = plan(small(tmp_path))
    assert (planned.next_version, planned.baseline, planned.rollback_to) == ("0004", 3, 3)
    assert "beside version 3, by y" in does(planned, "evaluate")
    assert does(planned, "smoke-test").endswith("brings back version 3")
    assert does(planned, "retire") == "removes 1, 2"


def test_every_gate_stands_with_its_limit(tmp_path: Path) -> None:
    """As configured, by the stage that looks."""
    gates = {(each.stage, each.rule): each.limit for each in plan(small(tmp_path)).gates}
    assert gates["check-data", "examples >="] == 100
    assert gates["check-data", "x: max_missing"] == 0.1
    assert gates["check-data", "drift of every feature, jensen_shannon <="] == 0.2
    assert gates["check-data", "drift of y, jensen_shannon <="] is None
    assert gates["evaluate", "accuracy >="] == 0.9
    assert gates["evaluate", "loss: rise from the served version <="] == "5%"
    assert gates["evaluate", "accuracy in every slice >="] == 0.5
    assert gates["evaluate", "without a served version"] == "accept"
    assert gates["validate", "equals estimator.predict"] == "auto"


def test_a_limit_on_latency_is_told(tmp_path: Path) -> None:
    """Beside the version that serves, and by itself."""
    asked = {
        "deployment": {"canary": {"latency": {"p99_ratio": 2}}},
        "smoke_test": {"latency_p99_limit_ms": 5},
    }
    gates = {(each.stage, each.rule): each.limit for each in plan(small(tmp_path, **asked)).gates}
    assert gates["canary", "p99 / that of the served version <="] == 2
    assert gates["smoke-test", "p99 in ms <="] == gates["canary", "p99 in ms <="] == 5


def test_golden_requests_are_a_gate_once_they_are_recorded(tmp_path: Path) -> None:
    """Before, the plan says where they would be: a misspelt file is a gate that is not there."""
    pipeline = small(tmp_path, smoke_test={"watch_seconds": 30}, answers={"tolerance": {"ulps": 2}})
    golden = pipeline.folder / "golden.tfrecord"
    gates = {each.rule: each.limit for each in plan(pipeline).gates}
    assert gates[f"golden requests: none are recorded in {golden}"] is None
    assert gates["equals the offline answers for so many seconds"] == 30
    golden.touch()
    gates = {each.rule: each.limit for each in plan(pipeline).gates}
    assert gates[f"golden requests of {golden} are answered as by the export"] == "ulps 2"


def test_what_is_only_reported_says_so(tmp_path: Path) -> None:
    """A gate that rejects nothing is not to be taken for one that does."""
    evaluation = {"thresholds": {"accuracy": {"min": 0.9}}, "gate": "reported"}
    rules = [each.rule for each in plan(small(tmp_path, evaluation=evaluation)).gates]
    assert "accuracy >= (reported only)" in rules


def test_a_run_that_was_killed_can_be_resumed(tmp_path: Path, home: Path) -> None:
    """Its finished stages would not be repeated, and training goes on from its newest checkpoint."""
    pipeline = small(tmp_path)
    folder = home / "runs" / "small" / "20260101-000000-000000"
    for name in ("config.yaml", "stages/ingest.json", "checkpoints/model.ckpt-20.index",
                 "checkpoints/model.ckpt-100.index"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    (folder / "config.yaml").write_text(pipeline.file.read_text())
    found = plan(pipeline).resumable
    assert found is not None
    assert (found.run_id, found.finished, found.step) == (folder.name, ("ingest",), 100)
    (folder / "verdict.json").write_text('{"outcome": "deployed"}')
    assert plan(pipeline).resumable is None


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For people as tables, for programs as JSON of the same."""
    folder = str(small(tmp_path).folder)
    assert main(["plan", folder]) == 0
    shown = capsys.readouterr().out
    assert "next version" in shown and "0001" in shown and "check-data" in shown
    assert main(["plan", folder, "--json", "--set", "evaluation.thresholds.accuracy.min=0.7"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["next_version"] == "0001"
    assert {"stage": "evaluate", "rule": "accuracy >=", "limit": 0.7} in told["gates"]


def test_it_imports_nothing_heavy_and_changes_nothing(tmp_path: Path, home: Path) -> None:
    """Neither TensorFlow nor Prefect, so that it answers at once; no file is written."""
    program = (
        "import sys; from flows.command.cli import main; code = main(['plan', sys.argv[1]]);"
        "sys.exit(code or sorted({'tensorflow', 'prefect', 'grpc'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(DIGITS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not home.exists()
