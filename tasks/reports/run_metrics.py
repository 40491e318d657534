"""What Prometheus may scrape of runs: `$SLIPWAY_HOME/metrics/<pipeline>.prom`, replaced after each run.

In the text format, for node_exporter's textfile collector (`--collector.textfile.directory`); it needs no
server of ours that has to be up. docs/how-to/alerts.md lists the metrics.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from configs.schema.home import home, make_readable
from tasks.core import durable_files
from tasks.core.artifacts import Verdict
from tasks.runs import run_folders

_log = logging.getLogger(__name__)
OUTCOMES = ("deployed", "trained", "skipped", "rejected", "rolled_back", "restored", "failed", "cancelled")


def file(pipeline: str) -> Path:
    """Return the pipeline's file."""
    return home() / "metrics" / f"{pipeline}.prom"


def write(verdict: Verdict, serving: int | None) -> None:
    """Replace the pipeline's file, durably. `serving` is the version that answers now.

    A full disk changes nothing for the run.
    """
    try:
        make_readable(file(verdict.pipeline).parent)
        text = generate_latest(_registry(verdict, serving))
        durable_files.write(file(verdict.pipeline), text, mode=0o644)  # node_exporter is another user
    except OSError as error:
        _log.warning("%s was not written: %s", file(verdict.pipeline), error)


def _registry(verdict: Verdict, serving: int | None) -> CollectorRegistry:
    registry = CollectorRegistry()

    def gauge(name: str, says: str, *labels: str) -> Gauge:
        return Gauge(f"slipway_{name}", says, ["pipeline", *labels], registry=registry)

    pipeline, now = verdict.pipeline, time.time()
    gauge("last_run_timestamp_seconds", "When the last run ended").labels(pipeline).set(now)
    outcome = gauge("last_run_outcome", "1 for what the last run ended in, else 0", "outcome")
    for each in OUTCOMES:
        outcome.labels(pipeline, each).set(each == verdict.outcome)
    seconds = gauge("last_run_stage_duration_seconds", "Duration of each stage of the last run", "stage")
    for stage in verdict.stages:
        seconds.labels(pipeline, stage.name).set(stage.seconds)
    failed = gauge("last_run_failed_checks", "Checks that failed in the last run")
    failed.labels(pipeline).set(sum(not check.passed for check in verdict.checks))
    passed = gauge("last_run_check_passed", "1 for a check that passed, else 0", "check", "rule")
    seen = gauge("last_run_check_observed", "What a check saw, where that is a number", "check", "rule")
    for check in verdict.checks:
        passed.labels(pipeline, check.name, check.rule).set(check.passed)
        if isinstance(check.observed, int | float):
            seen.labels(pipeline, check.name, check.rule).set(check.observed)
    measured = gauge("eval_metric", "Metric on the last run's eval split, of tonight's model", "metric")
    for name, value in verdict.metrics.items():
        measured.labels(pipeline, name).set(value)
    if verdict.baseline is not None:
        before = gauge("baseline_metric", "The same of the version that was served", "metric")
        for name, value in verdict.baseline.metrics.items():
            before.labels(pipeline, name).set(value)
    if serving is not None:
        gauge("serving_version", "Version that answers").labels(pipeline).set(serving)
        began = run_folders.serving_since(pipeline, serving)
        if began is not None:
            told = "When the version that answers was put into service: its age is time() minus this"
            gauge("serving_since_timestamp_seconds", told).labels(pipeline).set(began.timestamp())
    since = _last_deploy(verdict, now)
    if since is not None:
        gauge("last_deploy_timestamp_seconds", "When a version was last deployed").labels(pipeline).set(since)
    return registry


def _last_deploy(verdict: Verdict, now: float) -> float | None:
    """Return when a version was last deployed: now, or what the file of the run before says."""
    if verdict.outcome == "deployed":
        return now
    try:
        lines = file(verdict.pipeline).read_text().splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith("slipway_last_deploy_timestamp_seconds{")]
    return float(found[0].rpartition(" ")[2]) if found else None
