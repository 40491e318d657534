"""How soon an alert tells of each bad outcome: runs of a worker, a real Prefect server, a webhook."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil
import pytest
from night_worlds import PrefectServer
from nightly_station import LONG, Station
from receivers import webhook
from slipway_command import DIGITS, Slipway
from waiting import eventually

pytestmark = pytest.mark.timeout(1500)

LIMIT_SECONDS = 30.0


@dataclass
class OnCall:
    """A station with a worker and alerts, and what the webhook got."""

    station: Station
    hooked: list[dict[str, Any]]

    def start(self, deployment: str = "nightly-digits", **parameters: Any) -> str:
        """Have the worker run a deployment now; return the flow run's id."""
        (found,) = self.station.ask("deployments/filter", deployments={"name": {"any_": [deployment]}})
        now = {"scheduled_time": datetime.now(timezone.utc).isoformat()}
        state = {"type": "SCHEDULED", "state_details": now}
        path = f"deployments/{found['id']}/create_flow_run"
        return str(self.station.ask(path, state=state, parameters=parameters)["id"])

    def training(self) -> tuple[str, psutil.Process]:
        """Start a run that would train for hours; return its id and its process once it trains."""
        before = set(self.station.slipway.home.glob("runs/digits/[0-9]*"))
        flow_run = self.start(overrides=LONG)
        (folder,) = eventually(
            lambda: set(self.station.slipway.home.glob("runs/digits/[0-9]*")) - before, seconds=400
        )
        eventually(lambda: list(folder.glob("checkpoints/model.ckpt-*.index")), seconds=400)
        return flow_run, psutil.Process(json.loads((folder.parent / ".running").read_text())["pid"])

    def flow_run(self, id_: str) -> dict[str, Any]:
        """Return what Prefect says of the run."""
        (run,) = self.station.ask("flow_runs/filter", flow_runs={"id": {"any_": [id_]}})
        return dict(run)

    def ended(self, flow_run: str) -> dict[str, Any]:
        """Return the run once it has ended."""
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        eventually(lambda: self.flow_run(flow_run)["state"]["type"] in final, seconds=400)
        return self.flow_run(flow_run)

    def log(self, flow_run: str) -> list[str]:
        """Return the lines of the run's log so far."""
        chosen = {"flow_run_id": {"any_": [flow_run]}}
        return [
            line["message"] for line in self.station.ask("logs/filter", logs=chosen, sort="TIMESTAMP_ASC")
        ]

    def alert(self, flow_run: str, began: float | None = None) -> dict[str, Any]:
        """Return the one alert about the run; `began` is when its cause happened, by default now."""
        began = began or time.monotonic()
        eventually(lambda: self._about(flow_run), seconds=900)
        seconds = time.monotonic() - began
        (told,) = self._about(flow_run)
        sys.stdout.write(f"{told['alert']} after {seconds:.1f} s\n")
        assert seconds < LIMIT_SECONDS
        return told

    def _about(self, flow_run: str) -> list[dict[str, Any]]:
        return [each for each in self.hooked if each["url"].endswith(flow_run)]


@pytest.fixture(scope="module")
def on_call(station: Station) -> Iterator[OnCall]:
    """Alerts, a worker; at the end no run was told twice."""
    with webhook() as (address, hooked), station.worker("alerted"):
        done = station.slipway("alerts", SLIPWAY_ALERT_WEBHOOK=address)
        assert done.exit_code == 0, done.output
        yield OnCall(station, hooked)
    urls = [each["url"] for each in hooked]
    assert len(urls) == len(set(urls)), hooked


def test_a_bad_configuration(on_call: OnCall) -> None:
    """It ends the run before it begins: the pipeline's name is known all the same."""
    run = on_call.start(overrides={"training.max_stepz": 3})
    on_call.ended(run)
    told = on_call.alert(run)
    assert (told["alert"], told["pipeline"]) == ("failed", "digits")
    assert "did you mean 'max_steps'?" in told["error"]["message"]
    assert told["headline"].endswith(": failed: ConfigError")


def test_a_rejection(on_call: OnCall) -> None:
    """The state's message has the reason and the verdict's page, the run's name has the failed check."""
    overrides = {"training.max_steps": 100, "evaluation.thresholds": {"accuracy": {"min": 0.9999}}}
    run = on_call.start(overrides=overrides)
    ended = on_call.ended(run)
    told = on_call.alert(run)
    assert (told["alert"], told["pipeline"]) == ("rejected", "digits")
    assert ended["name"].startswith("digits 20")
    assert ended["name"].endswith(": rejected in evaluate: accuracy")
    assert "required: accuracy >= 0.9999. Verdict: http://" in ended["state"]["message"]
    reason = "digits: rejected: evaluation: accuracy is "
    tasks = on_call.station.ask("task_runs/filter", flow_runs={"id": {"any_": [run]}})
    assert {"ingest the examples of digits", "train digits to step 100"} <= {each["name"] for each in tasks}
    log = eventually(lambda: lines if reason in "".join(lines := on_call.log(run)) else [])
    assert not [line for line in log if "Traceback" in line]
    (told_by_run,) = [line for line in log if reason in line]
    assert "Verdict: http://" in told_by_run


def test_a_night_that_is_cancelled_beside_another_and_one_that_is_killed(on_call: OnCall) -> None:
    """Cancelled by the deployment's limit, before it had a name of its own; kill -9 of the other one."""
    run, process = on_call.training()
    home = on_call.station.slipway.home
    file, junit = home / "verdict.json", home / "beside.xml"
    done = on_call.station.slipway("trigger", "digits", "--watch", "--json", file, "--junit", junit)
    beside = done.verdict["run_id"]
    told = on_call.alert(beside)
    assert (told["alert"], told["pipeline"]) == ("cancelled", "digits")
    assert done.exit_code == 4, done.output
    assert "another run of this deployment is under way: digits 20" in done.output
    assert f"/runs/flow-run/{run}" in done.output
    assert (done.verdict["pipeline"], done.verdict["outcome"]) == ("digits", "cancelled")
    assert beside in junit.read_text()
    process.kill()
    told = on_call.alert(run, time.monotonic())
    assert (told["alert"], told["pipeline"]) == ("crashed", "digits")
    assert set(told["error"]) == {"class", "message", "hint"}


def test_a_run_that_a_person_cancels(on_call: OnCall) -> None:
    """Once it has ended: its trainer may save until then."""
    run, _ = on_call.training()
    on_call.station.ask(f"flow_runs/{run}/set_state", state={"type": "CANCELLING"})
    ended = on_call.ended(run)
    told = on_call.alert(run)
    assert (told["alert"], told["pipeline"]) == ("cancelled", "digits")
    assert ended["name"].endswith(": cancelled in train: Interrupted")


def test_a_rollback_that_is_refused(on_call: OnCall) -> None:
    """It has a name of its own, and its verdict."""
    run = on_call.start("roll-back", to=99)
    ended = on_call.ended(run)
    told = on_call.alert(run)
    assert (told["alert"], told["pipeline"]) == ("failed", "digits")
    assert ended["name"].startswith("roll back digits 20")
    assert ended["name"].endswith(": failed: ConfigError")


def test_silence_that_fell_due_while_the_server_was_down(tmp_path: Path) -> None:
    """It is told when the server is up again, not a whole window later."""
    within, home = 60.0, tmp_path / "home"
    server = PrefectServer(home / "prefect", home)
    slipway = Slipway(home, server.api)
    try:
        server.start(slipway.environment)
        password = (home / "prefect" / "api-auth-string").read_text().strip()
        with webhook() as (address, hooked):
            applied = slipway(
                "alerts", DIGITS, "--no-deploy-hours", f"{within / 3600}",
                SLIPWAY_ALERT_WEBHOOK=address, PREFECT_API_AUTH_STRING=password,
            )  # fmt: skip
            assert applied.exit_code == 0, applied.output
            time.sleep(10)  # Prefect begins the window within 5 s
            server.kill()
            time.sleep(within + 70)
            assert hooked == []
            server.start(slipway.environment)
            (told,) = eventually(lambda: hooked, seconds=within / 2)
        assert (told["alert"], told["pipeline"]) == ("silent", "digits")
    finally:
        server.kill()
