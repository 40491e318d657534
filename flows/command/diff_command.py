"""`slipway diff`: what two versions differ in, printed; nothing is changed."""

from __future__ import annotations

import sys
from typing import Any

from pydantic_core import to_json
from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs.loading.pipelines import Pipeline
from tasks.core.artifacts import Difference, OutputDifference, VersionDifferences
from tasks.deploys.version_differences import differences


def run(pipeline: Pipeline, first: str, second: str, samples: int, as_json: bool) -> int:
    """Print the differences, for people or as JSON."""
    found = differences(pipeline, first, second, samples)
    if as_json:
        sys.stdout.buffer.write(to_json(found, indent=2, inf_nan_mode="strings") + b"\n")
        sys.stdout.flush()
        return 0
    _show(found, Console(highlight=False))
    return 0


def _show(found: VersionDifferences, console: Console) -> None:
    console.print(Text(f"A  {found.first}\nB  {found.second}"), soft_wrap=True)
    for title, rows in (("made of", found.origin), ("configuration", found.config)):
        console.print()
        console.print(_differing(title, rows) if rows else Text(f"{title}: the same"))
    console.print()
    console.print(_metrics(found.metrics))
    console.print()
    console.print(Text(found.note) if found.note else _outputs(found.outputs))


def _differing(title: str, rows: tuple[Difference, ...]) -> Table:
    table = _table(title, "A", "B")
    for row in rows:
        table.add_row(row.key, Text(_text(row.first)), Text(_text(row.second)))
    return table


def _metrics(rows: tuple[Difference, ...]) -> Table:
    table = _table("metric", "A", "B", "B - A")
    for row in rows:
        numbers = isinstance(row.first, (int, float)) and isinstance(row.second, (int, float))
        change = f"{row.second - row.first:+.4g}" if numbers else ""
        table.add_row(row.key, _number(row.first), _number(row.second), change)
    return table


def _outputs(outputs: tuple[OutputDifference, ...]) -> Table:
    table = _table("output", "examples that differ", "largest difference", "furthest apart: A, B")
    for each in outputs:
        apart = [f"{row.example}: {row.first} | {row.second}" for row in each.furthest]
        largest = "" if each.largest is None else f"{each.largest:.4g}"
        count = each.note or f"{each.differing:,} of {each.examples:,}"
        table.add_row(f"{each.signature} {each.output}", count, largest, Text("\n".join(apart)))
    return table


def _table(*columns: str) -> Table:
    table = Table(show_edge=False, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else _text(value)
