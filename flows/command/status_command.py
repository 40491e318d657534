"""`slipway status` without a pipeline: every one that left something here, a line each."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from configs.loading.errors import ConfigError
from configs.loading.pipelines import load_pipeline
from configs.schema.home import home, servers_folder
from flows.ui_address import ui_api, ui_auth_string
from tasks.runs import run_folders
from tasks.servers import model_servers, model_status

_SECONDS_FOR_PREFECT = 3.0
_MOST_SCHEDULED = 200


@dataclass(frozen=True)
class Schedule:
    """The next runs, as far as a Prefect server says."""

    known: bool
    """Whether a server answered."""
    next_run: Mapping[str, datetime]
    """Name of a pipeline to when its next run is due."""


def show(console: Console) -> int:
    """Print what serves, since when, the last verdict and the next run of every pipeline."""
    names = sorted(_names())
    if not names:
        console.print(f"no pipeline has been run yet in {escape(str(home()))}: slipway run PIPELINE")
        return 0
    schedule = scheduled()
    table = Table(show_edge=False, pad_edge=False, header_style="dim")
    rows = [(name, *_serving(name), _verdict(name), _next_run(name, schedule)) for name in names]
    headers = ("pipeline", "serving", "since", "last verdict", "next run")
    for header, *cells in zip(headers, *rows, strict=True):
        words = " ".join(Text.from_markup(cell).plain for cell in cells).split()
        table.add_column(header, overflow="fold", min_width=max(map(len, words), default=0))
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if not schedule.known:
        console.print(
            "[dim]no Prefect server answers: next runs are not known (slipway ui, PREFECT_API_URL)[/]"
        )
    return 0


def show_json(pipeline: str | None) -> int:
    """Print the same as JSON, a list; of one pipeline if it is named."""
    schedule = scheduled()
    found = [_facts(name, schedule) for name in ([pipeline] if pipeline else sorted(_names()))]
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0


def _facts(name: str, schedule: Schedule) -> dict[str, Any]:
    record = model_servers.recorded(name)
    alive = record is not None and bool(record.handle) and model_servers.is_alive(record)
    live = model_status.live_version(record.rest, name) if record is not None and alive else None
    verdict = run_folders.last_verdict(name)
    since = None if live is None else run_folders.serving_since(name, live)
    due = schedule.next_run.get(name)
    return {
        "pipeline": name,
        "version": live,
        "since": None if since is None else since.isoformat(timespec="seconds"),
        "grpc": record.grpc if record is not None and alive else None,
        "rest": record.rest if record is not None and alive else None,
        "server": record.describe() if record is not None and record.handle else None,
        "server_answers": alive,
        "under_way": run_folders.run_under_way(name),
        "last_verdict": verdict and {key: verdict.get(key) for key in ("outcome", "run_id", "error")},
        "next_run": None if due is None else due.isoformat(timespec="seconds"),
    }


def _names() -> set[str]:
    """Return the pipelines that were run here, or whose server was started here."""
    runs = {folder.name for folder in (home() / "runs").glob("*") if folder.is_dir()}
    return runs | {file.stem for file in servers_folder().glob("[a-z0-9]*.json") if "." not in file.stem}


def _serving(name: str) -> tuple[str, str]:
    record = model_servers.recorded(name)
    if record is None or not record.handle:
        return "nothing", ""
    if not model_servers.is_alive(record):
        return f"[red]nothing[/]: {record.describe()} is gone", ""
    live = model_status.live_version(record.rest, name)
    version = f"[bold green]{live}[/]" if live is not None else "[yellow]no version yet[/]"
    since = None if live is None else run_folders.serving_since(name, live)
    return f"{version} at {record.grpc}", "?" if since is None else _when(since)


def _verdict(name: str) -> str:
    if (under_way := run_folders.run_under_way(name)) is not None:
        return f"[cyan]under way[/]: {escape(under_way)}"
    verdict = run_folders.last_verdict(name)
    if verdict is None:
        return "none: no run has ended"
    color = {**dict.fromkeys(("deployed", "trained", "checked", "skipped"), "green"), "rejected": "yellow"}
    outcome = str(verdict["outcome"])
    return f"[{color.get(outcome, 'red')}]{outcome.replace('_', ' ')}[/] {verdict['run_id'] or '(no run)'}"


def _next_run(name: str, schedule: Schedule) -> str:
    if not schedule.known:
        return "?"
    due = schedule.next_run.get(name)
    return "none" if due is None else _when(due)


def _when(instant: datetime) -> str:
    return f"{instant.astimezone():%Y-%m-%d %H:%M}"


def scheduled() -> Schedule:
    """Ask the Prefect server for the next runs; within seconds it has answered, or is taken for absent."""
    api = os.environ.get("PREFECT_API_URL") or ui_api()
    if not api:
        return Schedule(False, {})
    try:
        with httpx.Client(
            base_url=api, timeout=_SECONDS_FOR_PREFECT, trust_env=False, auth=_auth(api)
        ) as client:
            soonest: dict[str, datetime] = {}
            for name, due in _next_runs(client):
                soonest.setdefault(name, due)
            return Schedule(True, soonest)
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return Schedule(False, {})


def _auth(api: str) -> tuple[str, str] | None:
    given = os.environ.get("PREFECT_API_AUTH_STRING") or ui_auth_string(api) or ""
    user, colon, password = given.partition(":")
    return (user, password) if colon else None


def _next_runs(client: httpx.Client) -> Iterator[tuple[str, datetime]]:
    names = {each["id"]: name for each in _post(client, "deployments", {}) if (name := _pipeline(each))}
    wanted = {
        "sort": "EXPECTED_START_TIME_ASC",  # Prefect schedules many nights ahead, and lists a page of them
        "limit": _MOST_SCHEDULED,
        "flow_runs": {
            "state": {"type": {"any_": ["SCHEDULED"]}},
            "deployment_id": {"any_": list(names)},
            "expected_start_time": {"after_": datetime.now(timezone.utc).isoformat()},
        },
    }
    for run in _post(client, "flow_runs", wanted) if names else []:
        due = datetime.fromisoformat(run["expected_start_time"].replace("Z", "+00:00"))
        yield names[run["deployment_id"]], due


def _post(client: httpx.Client, what: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    answer = client.post(f"{what}/filter", json=body)
    answer.raise_for_status()
    return list(answer.json())


def _pipeline(deployment: Mapping[str, Any]) -> str | None:
    """Return the name of the pipeline that a deployment runs: by its YAML where it is here, else its path."""
    path = (deployment.get("parameters") or {}).get("pipeline")
    if not isinstance(path, str):
        return None
    folders = [
        step.get("directory")
        for entry in deployment.get("pull_steps") or []
        for step in entry.values()
        if isinstance(step, Mapping)
    ]
    for folder in (*filter(None, folders), "."):
        try:
            return load_pipeline(Path(folder) / path).config.name
        except ConfigError:
            continue
    return Path(path).stem
