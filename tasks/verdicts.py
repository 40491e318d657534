"""A verdict as a person reads it in the Prefect UI: markdown, the outcome first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tasks.artifacts import Check, Verdict

_GOOD = ("deployed", "trained")


def as_markdown(verdict: Verdict) -> str:
    """Render the verdict: outcome, why, where it serves, stages, checks."""
    return "\n".join(_lines(verdict))


def _lines(verdict: Verdict) -> Iterator[str]:
    outcome = verdict.outcome.replace("_", " ")
    yield f"# {_mark(verdict.outcome in _GOOD)} {verdict.pipeline}: {outcome}"
    yield ""
    yield f"Run `{verdict.run_id}`. {_versions(verdict)}"
    if verdict.error is not None:
        yield from ("", f"**{verdict.error['class']}**: {verdict.error['message']}")
        if verdict.error["hint"]:
            yield from ("", "```", verdict.error["hint"], "```")
    if verdict.endpoint is not None:
        status = f"{verdict.endpoint['rest']}/v1/models/{verdict.pipeline}"
        yield from ("", f"Serves at gRPC `{verdict.endpoint['grpc']}`, REST <{status}>.")
    yield from ("", "| stage | seconds | outcome | what it proved |", "|---|---:|---|---|")
    for stage in verdict.stages:
        yield _row(stage.name, f"{stage.seconds:.1f}", stage.outcome, stage.proved)
    if verdict.checks:
        yield from ("", *_checks(verdict.checks))


def _versions(verdict: Verdict) -> str:
    if verdict.version is None:
        return "Nothing was published."
    before = f"; before it: {verdict.previous_version}" if verdict.previous_version is not None else ""
    return f"Version **{verdict.version}**{before}."


def _checks(checks: Iterable[Check]) -> Iterator[str]:
    yield from ("| check | rule | observed | limit | |", "|---|---|---:|---:|---|")
    for check in checks:
        shown = (_shown(check.observed), _shown(check.limit), _mark(check.passed))
        yield _row(check.name, check.rule, *shown)


def _mark(good: bool) -> str:
    return "✓" if good else "✗"


def _shown(value: float | str | None) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)


def _row(*cells: str) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(cell: str) -> str:
    """Return the text as one cell of a table: on one line, its pipes and backslashes escaped."""
    return " ".join(cell.splitlines()).replace("\\", "\\\\").replace("|", "\\|")
