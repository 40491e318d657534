"""A verdict as a person reads it in the Prefect UI (markdown, the outcome first), and as a shell does."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from tasks.core.artifacts import Check, StageReport, Verdict
from tasks.core.errors import AlreadyRunning, error_named
from tasks.reports import markdown
from tasks.reports.markdown import mark, row, shown
from tasks.reports.next_commands import NextCommand

_GOOD = ("deployed", "trained", "checked", "skipped")
_CHARACTERS_OF_A_CELL = 60
"""Of what a stage proved: the page is then no wider than a window of 1,280 pixels."""

_MEANS = {
    "deployed": "The new version answers.",
    "trained": "A candidate was left beside the versions; nothing was published.",
    "checked": "A dry run: nothing was trained, nothing was changed.",
    "skipped": "Nothing was trained: examples and configuration are those of the version that serves.",
    "rejected": "Nothing was published. What served before still serves.",
    "rolled_back": "The new version was withdrawn. The one before it answers again.",
    "failed": "What served before was left as it was.",
    "cancelled": "The run was stopped. What served before was left as it was.",
}


def exit_code(verdict: Verdict) -> int:
    """Return what `slipway run` ends with: 0 done, 1 failed, 2 bad configuration, 3 rejected by a gate.

    4 if it was cancelled, or another run of the pipeline was under way.
    """
    if verdict.outcome == "cancelled":
        return AlreadyRunning.exit_code
    return error_named(verdict.error["class"]).exit_code if verdict.error else 0


def short_reason(verdict: Verdict) -> str:
    """Return outcome, stage and cause in a few words: `rejected in evaluate: accuracy`."""
    ended = [stage.name for stage in verdict.stages if stage.outcome != "passed"]
    where = f" in {ended[-1]}" if ended else ""
    failed = [check.name for check in verdict.checks if not check.passed]
    more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
    cause = f"{failed[0]}{more}" if failed else verdict.error["class"] if verdict.error else ""
    return f"{verdict.outcome.replace('_', ' ')}{where}: {cause}"


def as_markdown(
    verdict: Verdict, folder: str = "", serving: str = "", following: Sequence[NextCommand] = ()
) -> str:
    """Render the verdict: outcome, why, where it serves, what to type, what changed, stages, checks, files.

    Args:
        verdict: how the run ended.
        folder: the run's, if it has one.
        serving: sentence about what serves now.
        following: commands to type next, the most likely first.
    """
    return "\n".join(_lines(verdict, folder, serving, following))


def _lines(verdict: Verdict, folder: str, serving: str, following: Sequence[NextCommand]) -> Iterator[str]:
    outcome = verdict.outcome.replace("_", " ")
    yield f"# {mark(verdict.outcome in _GOOD)} {verdict.pipeline}: {outcome}"
    yield from ("", f"{_MEANS.get(verdict.outcome, '')} {_versions(verdict)}".strip())
    if verdict.error is not None:
        yield from ("", f"**{verdict.error['class']}**: {verdict.error['message']}")
        if verdict.error["hint"]:
            yield from ("", "```", verdict.error["hint"], "```")
    yield from _endpoint(verdict) if verdict.endpoint is not None else ("", serving)
    if following:
        yield from ("", "## Next", "", f"On {platform.node()}:", "")
    for each in following:
        yield from ("```", each.command, "```", "", each.effect, "")
    if verdict.metrics:
        yield from markdown.comparison(verdict.metrics, verdict.baseline)
    failed = [check for check in verdict.checks if not check.passed]
    if failed:
        yield from ("", "## Checks that failed", "", *_checks(failed))
    yield from ("", "## Stages", "", "| | stage | seconds | result |", "|---|---|---:|---|")
    for stage in verdict.stages:
        yield from _stage(stage)
    if verdict.checks:
        yield from ("", f"## All {len(verdict.checks)} checks", "", *_checks(verdict.checks))
    yield from _files(verdict, folder)


def _endpoint(verdict: Verdict) -> Iterator[str]:
    if verdict.endpoint is None:
        return
    model = f"{verdict.endpoint['rest']}/v1/models/{verdict.pipeline}"
    yield from ("", f"Serves at gRPC `{verdict.endpoint['grpc']}`, REST <{model}>.")
    yield f"[state of its versions]({model}) · [signatures]({model}/metadata)"


def _versions(verdict: Verdict) -> str:
    if verdict.version is None:
        return ""
    before = f"; before it: {verdict.previous_version}" if verdict.previous_version is not None else ""
    return f"Version **{verdict.version}**{before}."


def _stage(stage: StageReport) -> Iterator[str]:
    """Yield a row, and one for each further line of its summary: the UI cuts cells off."""
    first, *others = textwrap.wrap(stage.summary, _CHARACTERS_OF_A_CELL) or [""]
    passed = stage.outcome == "passed"
    yield row(
        mark(passed), stage.name, f"{stage.seconds:.1f}", first if passed else f"{stage.outcome}: {first}"
    )
    for line in others:
        yield row("", "", "", line)


def _checks(checks: Iterable[Check]) -> Iterator[str]:
    """Yield a list, which wraps where a table would be cut off."""
    for check in checks:
        text = f"{check.rule}; observed {shown(check.observed)}"
        if check.limit is not None:
            text += f", limit {shown(check.limit)}"
        if check.baseline is not None:
            text += f", live version {shown(check.baseline)}"
        yield f"- {mark(check.passed)} **{markdown.escaped(check.name)}**: {markdown.escaped(text)}"


def _files(verdict: Verdict, folder: str) -> Iterator[str]:
    yield from ("", f"Run `{verdict.run_id}`.")
    if folder:
        drawn = "".join(f"\npictures/{picture.file.name}" for picture in verdict.pictures)
        yield "Its folder, with logs, verdict.json and report.html, which has all of it on one page:"
        yield from ("", "```", f"{folder}{drawn}", "```")
