"""`slipway status` without a pipeline: every pipeline of this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_port
from rich.console import Console
from slipway_command import REPOSITORY, Slipway

from flows.command import status_command

PULL = {"prefect.deployments.steps.set_working_directory": {"directory": str(REPOSITORY)}}
DUE = (datetime.now(timezone.utc) + timedelta(hours=3)).replace(microsecond=0)


def _left(home: Path, name: str, outcome: str) -> None:
    folder = home / "runs" / name / "20261122-030000-000000"
    folder.mkdir(parents=True)
    (folder / "verdict.json").write_text(json.dumps({"outcome": outcome, "run_id": folder.name}))


@pytest.fixture
def prefect() -> Iterator[str]:
    """What Prefect's API says of three nightly deployments, one of them of the digits, 100 nights ahead."""
    nights = [
        {"deployment_id": deployment, "expected_start_time": (DUE + timedelta(days=night)).isoformat()}
        for night in range(100)
        for deployment in ("d3", "d4")
    ]
    due = DUE.isoformat().replace("+00:00", "Z")
    answers: dict[str, list[dict[str, Any]]] = {
        "/api/deployments/filter": [
            {"id": "d1", "parameters": {"pipeline": "configs/digits"}, "pull_steps": [PULL]},
            {"id": "d2", "parameters": {}, "pull_steps": None},
            {"id": "d3", "parameters": {"pipeline": "configs/two_heads"}, "pull_steps": [PULL]},
            {"id": "d4", "parameters": {"pipeline": "configs/diabetes"}, "pull_steps": [PULL]},
        ],
        "/api/flow_runs/filter": [
            *nights,
            {"deployment_id": "d1", "expected_start_time": (DUE + timedelta(days=1)).isoformat()},
            {"deployment_id": "d1", "expected_start_time": due},
        ],
    }  # fmt: skip

    class Api(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found = answers[self.path]
            if "sort" in asked:  # a page of them, as Prefect answers
                newest_first = asked["sort"].endswith("_DESC")
                found = sorted(found, key=lambda run: run["expected_start_time"], reverse=newest_first)
            body = json.dumps(found[: asked.get("limit", 200)]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/api"
        server.shutdown()


def _shown(width: int = 200) -> str:
    console = Console(record=True, width=width)
    assert status_command.show(console) == 0
    return console.export_text()


def test_every_pipeline_has_a_line(home: Path, prefect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What serves, how the last run ended, and the soonest of the next ones."""
    monkeypatch.setenv("PREFECT_API_URL", prefect)
    _left(home, "digits", "deployed")
    _left(home, "other", "rolled_back")
    digits, other = (line for line in _shown().splitlines() if line.startswith(("digits", "other")))
    assert "nothing" in digits
    assert "deployed 20261122-030000-000000" in digits
    assert f"{DUE.astimezone():%Y-%m-%d %H:%M}" in digits
    assert "rolled back" in other
    assert other.rstrip().endswith("none")


def test_no_word_is_broken_at_80_columns(home: Path, prefect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's id and a time can be copied."""
    monkeypatch.setenv("PREFECT_API_URL", prefect)
    _left(home, "digits", "rolled_back")
    words = {word for line in _shown(80).splitlines() for word in line.replace("│", " ").split()}
    assert {"digits", "20261122-030000-000000", "rolled", "back", f"{DUE.astimezone():%Y-%m-%d}"} <= words


@pytest.mark.parametrize("answer", ["refused", "no JSON"])
def test_without_a_prefect_server_the_rest_is_shown(
    home: Path, answer: str, prefect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether nobody listens, or something else does."""
    api = f"http://127.0.0.1:{free_port()}/api" if answer == "refused" else f"{prefect}/nowhere"
    monkeypatch.setenv("PREFECT_API_URL", api)
    _left(home, "digits", "rejected")
    shown = _shown()
    assert "rejected" in shown
    assert "no Prefect server answers" in shown


def test_before_the_first_run_it_says_how_to_begin(slipway: Slipway) -> None:
    """By the command itself."""
    shown = slipway("status")
    assert shown.exit_code == 0, shown.output
    assert "no pipeline has been run yet" in shown.output
