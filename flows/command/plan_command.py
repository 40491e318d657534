"""`slipway plan`: what a run would do, printed; nothing is changed."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from pydantic_core import to_json
from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs.loading.model_checks import require_buildable
from configs.loading.pipelines import Pipeline
from configs.loading.references import require_callables
from tasks.deploys.planning import Plan, Resumable, plan


def run(pipeline: Pipeline, as_json: bool) -> int:
    """Print the plan, for people or as JSON. Raises ConfigError for a pipeline that could not run."""
    require_callables(pipeline)
    require_buildable(pipeline)
    planned = plan(pipeline)
    if as_json:
        sys.stdout.buffer.write(to_json(planned, indent=2) + b"\n")
        sys.stdout.flush()
        return 0
    _show(planned, Console(highlight=False))
    return 0


def _show(planned: Plan, console: Console) -> None:
    for label, text in _facts(planned):
        console.print(Text.assemble((f"{label:<14} ", "dim"), text), soft_wrap=True)
    console.print()
    stages = _table("stage", "what it would do")
    for stage in planned.stages:
        stages.add_row(stage.name, Text(stage.does))
    console.print(stages)
    console.print()
    gates = _table("gate of", "rule", "limit")
    for gate in planned.gates:
        gates.add_row(gate.stage, Text(gate.rule), Text(_shown(gate.limit)))
    console.print(gates)


def _facts(planned: Plan) -> Iterator[tuple[str, str]]:
    yield "next version", planned.next_version
    yield "compared with", _version(planned.baseline, "nothing: no version is served yet")
    yield "undone to", _version(planned.rollback_to, "nothing: the server is stopped")
    if planned.under_way is not None:
        yield "under way", planned.under_way
    if planned.resumable is not None:
        yield "resumable", _resumed(planned.resumable)


def _version(number: int | None, none: str) -> str:
    return none if number is None else f"version {number}"


def _resumed(found: Resumable) -> str:
    repeated = (
        f"{', '.join(found.finished)} would not be repeated"
        if found.finished
        else "every stage would be repeated"
    )
    step = "" if found.step is None else f"; its newest checkpoint is of step {found.step:,}"
    return f"run {found.run_id}, by --resume: {repeated}{step}"


def _table(*columns: str) -> Table:
    table = Table(show_edge=False, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _shown(limit: object) -> str:
    if limit is None:
        return "-"
    return ", ".join(map(str, limit)) if isinstance(limit, tuple | list) else str(limit)
