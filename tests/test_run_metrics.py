"""What Prometheus may scrape of runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args

from prometheus_client.parser import text_string_to_metric_families

from configs.schema.home import runs_folder
from tasks.core.artifacts import Baseline, Check, Run, StageReport, Verdict
from tasks.reports import run_metrics
from tasks.runs import run_folders
from tasks.runs.run_records import Outcome


def _verdict(**changes: Any) -> Verdict:
    values: dict[str, Any] = {
        "pipeline": "digits", "run_id": "r1", "outcome": "deployed", "version": 8, "previous_version": 7,
        "endpoint": None, "stages": (StageReport("train", 1.5, "passed", ""),),
        "checks": (Check("a", "a > 1", 0, 1, False),), "metrics": {"accuracy": 0.9}, "error": None,
        "baseline": Baseline(7, {"accuracy": 0.8}, ""),
    }  # fmt: skip
    return Verdict(**{**values, **changes})


def _samples() -> dict[tuple[str, ...], float]:
    """Name and labels, but for the pipeline, to value."""
    families = text_string_to_metric_families(run_metrics.file("digits").read_text())
    return {
        (sample.name, *(value for name, value in sample.labels.items() if name != "pipeline")): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_run_leaves_its_metrics() -> None:
    """Outcome, stages, metrics of both models, and what serves."""
    run_metrics.write(_verdict(), serving=8)
    found = _samples()
    assert found["slipway_last_run_outcome", "deployed"] == 1
    assert found["slipway_last_run_outcome", "rejected"] == 0
    assert found["slipway_last_run_stage_duration_seconds", "train"] == 1.5
    assert found["slipway_last_run_failed_checks",] == 1
    assert found["slipway_eval_metric", "accuracy"] == 0.9
    assert found["slipway_baseline_metric", "accuracy"] == 0.8
    assert found["slipway_serving_version",] == 8
    assert found["slipway_last_deploy_timestamp_seconds",] == found["slipway_last_run_timestamp_seconds",]


def test_every_outcome_but_a_dry_runs_is_a_series() -> None:
    """An alert on one that is missing would never fire; a dry run leaves no metrics."""
    assert {*run_metrics.OUTCOMES, "checked"} == set(get_args(Outcome))


def test_a_run_that_deploys_nothing_keeps_when_one_did() -> None:
    """Else the alert on the age of the last deployment would fall silent."""
    run_metrics.write(_verdict(), serving=8)
    before = _samples()["slipway_last_deploy_timestamp_seconds",]
    run_metrics.write(_verdict(outcome="failed", metrics={}, baseline=None), serving=None)
    found = _samples()
    assert found["slipway_last_deploy_timestamp_seconds",] == before
    assert found["slipway_last_run_timestamp_seconds",] >= before
    assert ("slipway_serving_version",) not in found


def test_a_model_that_was_never_deployed_has_no_time_of_it() -> None:
    """0 would be 1970."""
    run_metrics.write(_verdict(outcome="rejected"), serving=None)
    assert ("slipway_last_deploy_timestamp_seconds",) not in _samples()


def test_other_users_may_read_it() -> None:
    """node_exporter runs as one."""
    run_metrics.write(_verdict(), serving=8)
    assert run_metrics.file("digits").stat().st_mode & 0o777 == 0o644


def test_a_folder_that_cannot_be_written_fails_no_run(home: Path) -> None:
    """The run has come to its end."""
    home.mkdir()
    (home / "metrics").write_text("a file")
    run_metrics.write(_verdict(), serving=8)


def test_the_age_of_the_live_version_is_known(tmp_path: Path) -> None:
    """Since its deployment, or since a rollback to it; runs that deploy nothing leave it."""
    for run_id, outcome, at in (("r1", "deployed", 1000), ("r2", "rejected", 2000), ("r3", "restored", 3000)):
        run = Run("digits", run_id, runs_folder("digits") / run_id, tmp_path, tmp_path)
        version = None if outcome == "rejected" else 8
        run_folders.write_verdict(_verdict(outcome=outcome, version=version), run_folders.verdict_file(run))
        os.utime(run_folders.verdict_file(run), (at, at))
        run_metrics.write(_verdict(outcome=outcome), serving=8)
        expected = 3000 if outcome == "restored" else 1000
        assert _samples()["slipway_serving_since_timestamp_seconds",] == expected
    run_metrics.write(_verdict(), serving=9)
    assert ("slipway_serving_since_timestamp_seconds",) not in _samples()
