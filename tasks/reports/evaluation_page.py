"""An evaluation as a person reads it in the Prefect UI."""

from __future__ import annotations

from collections.abc import Iterator

from tasks.core.artifacts import Evaluation, Run
from tasks.reports import markdown


def as_markdown(evaluated: Evaluation, run: Run) -> str:
    """Render it: the gate first, tonight beside what is served, pictures, slices."""
    return "\n".join(_lines(evaluated, run))


def _lines(evaluated: Evaluation, run: Run) -> Iterator[str]:
    passed = all(check.passed for check in evaluated.checks)
    yield f"# {markdown.mark(passed)} {run.pipeline}: {evaluated.examples:,} held-out examples"
    if evaluated.checks:
        yield from ("", "| threshold | observed | limit | served now | |", "|---|---:|---:|---:|---|")
        for check in evaluated.checks:
            numbers = (markdown.shown(each) for each in (check.observed, check.limit, check.baseline))
            yield markdown.row(check.rule, *numbers, markdown.mark(check.passed))
    else:
        yield from ("", "No thresholds are set: `evaluation.thresholds`, `evaluation.changes`.")
    yield from markdown.comparison(evaluated.metrics, evaluated.baseline)
    yield from markdown.pictures(evaluated.pictures)
    yield from markdown.slices(evaluated.slices, evaluated.metrics)
    yield from (
        "",
        "Every curve: `make tensorboard`, or",
        "```",
        f"tensorboard --logdir {run.model_dir}",
        "```",
    )
