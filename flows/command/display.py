"""A run as a person watches it in the terminal: a line a stage while it goes, one table at its end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from tasks.core.artifacts import Check, Verdict
from tasks.reports.markdown import shown
from tasks.runs import progress_lines
from tasks.runs.run_records import Event, StageEntry

_MARKS = {
    "passed": "[green]✓[/]",
    "rejected": "[yellow]✗[/]",
    "failed": "[red]✗[/]",
    "interrupted": "[red]✗[/]",
}
_OUTCOMES = {
    "deployed": "[bold green]deployed[/]",
    "trained": "[bold green]trained[/] (a candidate was left, nothing published)",
    "checked": "[bold green]checked[/] (a dry run: nothing was trained, nothing was changed)",
    "skipped": "[bold green]skipped[/] (nothing new to train on)",
    "rejected": "[bold yellow]rejected[/] (nothing was published)",
    "rolled_back": "[bold yellow]rolled back[/] (the new version is withdrawn; the one before answers)",
    "failed": "[bold red]failed[/]",
    "cancelled": "[bold yellow]cancelled[/]",
}
_MOST_MISSED = 8


class RunDisplay:
    """Shows the events of a run; in a terminal live, elsewhere (CI, a pipe) as plain lines."""

    def __init__(self, console: Console) -> None:
        self.verdict: Verdict | None = None
        self._console = console
        self._live = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.fields[mark]} [bold]{task.description}[/]", table_column=Column(width=12)),
            BarColumn(16, complete_style="cyan", finished_style="green", table_column=Column(width=16)),
            TimeElapsedColumn(table_column=Column(width=7)),
            TextColumn("{task.fields[text]}", table_column=Column(ratio=1, no_wrap=True)),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self._rows: dict[str, TaskID] = {}
        self._open: set[str] = set()
        self._last_plain = 0.0

    def __enter__(self) -> RunDisplay:
        self._live.start()
        self._begin("prefect", "starting")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def prepare(self, text: str) -> None:
        """Show what the run waits for before its first stage."""
        self._live.update(self._rows["prefect"], text=text)
        if time.monotonic() - self._last_plain >= progress_lines.LOG_EVERY_SECONDS:
            self._plain(f"prefect: {text}")

    def watch(self, event: Event) -> None:
        """Handle an event of the run."""
        if event.kind == "run_ended":
            self.verdict = event.verdict
        elif event.entry is not None and event.kind == "stage_started":
            self._finish("prefect", "[green]✓[/]", "ready")
            self._begin(event.entry.name, "")
        elif event.entry is not None and event.kind == "stage_ended":
            self._end(event.entry)
        elif event.entry is not None:
            self._advance(event.entry, event.progress)

    def _begin(self, name: str, text: str) -> None:
        if name in self._rows:
            self._live.remove_task(self._rows.pop(name))
        self._rows[name] = self._live.add_task(name, total=None, mark=" ", text=text)
        self._open.add(name)
        self._plain(f"{name} …")

    def _advance(self, entry: StageEntry, progress: Mapping[str, Any]) -> None:
        if "level" in progress:  # a line of a log
            self._console.print(f"{entry.name}: {progress['message']}", markup=False, highlight=False)
            return
        text = progress_lines.line(progress)
        self._live.update(
            self._rows[entry.name],
            total=progress.get("max_steps"),
            completed=progress.get("step", 0),
            text=text,
        )
        if time.monotonic() - self._last_plain >= progress_lines.LOG_EVERY_SECONDS:
            self._plain(f"{entry.name}: {text}")

    def _end(self, entry: StageEntry) -> None:
        self._finish(entry.name, _MARKS.get(entry.outcome, " "), entry.summary)
        self._plain(f"{entry.name} {entry.outcome} in {entry.seconds:.1f} s: {entry.summary}")

    def _finish(self, name: str, mark: str, text: str) -> None:
        if name in self._open:
            self._open.remove(name)
            line = escape(text.splitlines()[0]) if text else ""
            self._live.update(self._rows[name], total=1, completed=1, mark=mark, text=line)

    def _plain(self, line: str) -> None:
        if not self._console.is_terminal:
            self._last_plain = time.monotonic()
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_verdict(console: Console, verdict: Verdict) -> None:
    """Print the table of a run: stage, seconds, result; before it the outcome."""
    version = f" version {verdict.version}" if verdict.version is not None else ""
    console.print()
    console.print(f"{verdict.pipeline}{version}: {_OUTCOMES.get(verdict.outcome, verdict.outcome)}")
    table = Table(show_edge=False, pad_edge=False, header_style="dim")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("result", overflow="fold")
    for stage in verdict.stages:
        mark = _MARKS.get(stage.outcome, "")
        first_line = stage.summary.splitlines()[0] if stage.summary else ""
        table.add_row(f"{mark} {stage.name}", f"{stage.seconds:.1f}", Text(first_line))
    table.add_section()
    table.add_row("  total", f"{sum(stage.seconds for stage in verdict.stages):.1f}", "")
    console.print(table)
    _print_missed(console, [check for check in verdict.checks if not check.passed])


def _print_missed(console: Console, missed: list[Check]) -> None:
    """Print each check that failed as a block of lines that wrap between words, whatever the width."""
    for check in missed[:_MOST_MISSED]:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column()
        baseline = [("live version", shown(check.baseline))] if check.baseline is not None else []
        rows = [("rule", check.rule), ("observed", shown(check.observed)), ("limit", shown(check.limit))]
        for name, value in rows + baseline:
            grid.add_row(f"    {name}", Text(value))
        console.print(Text.assemble("\n", ("✗ ", "yellow"), (check.name, "bold")))
        console.print(grid)
    if len(missed) > _MOST_MISSED:
        console.print(f"\nand {len(missed) - _MOST_MISSED} more checks that failed, in verdict.json")


def print_error(console: Console, error: Mapping[str, str]) -> None:
    """Print the class, message and hint of what ended a run or refused a command."""
    console.print(Text.assemble((f"{error['class']}: ", "bold red"), error["message"]), soft_wrap=True)
    if error.get("hint"):
        console.print(Text(f"  hint: {error['hint']}"), soft_wrap=True)
