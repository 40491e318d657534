"""Events of runs, and the automations that notify of them: against a real Prefect server."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from pipelines import written
from receivers import mail_server, webhook
from slipway_command import DIGITS, REPOSITORY, Finished, Slipway
from waiting import eventually

from tasks.reports import run_events

FAILS = "from flows.retrain import retrain; retrain('/no/such/pipeline', return_state=True)"
SILENCE = "0.003"
"""Hours: eleven seconds, of which Prefect wants ten at least."""
EVALUATED_EVERY_SECONDS = 5
"""Prefect's `server.events.proactive_granularity`."""


@dataclass
class Night:
    """Alerts that were applied, a night that went wrong, and what came of it."""

    api: httpx.Client
    slipway: Slipway
    applied: list[Finished]
    hooked: list[dict[str, Any]]
    mailed: list[str]

    def emit(self, event: str, pipeline: str) -> None:
        """Send an event of a pipeline, as a run does."""
        resource = run_events.resource(pipeline)
        now = datetime.now(timezone.utc).isoformat()
        sent = {"occurred": now, "event": event, "resource": resource, "id": str(uuid.uuid4())}
        self.api.post("/events", json=[sent]).raise_for_status()

    def hook(self, alert: str, of: str) -> dict[str, Any]:
        """What the webhook was sent: wait for it."""
        return eventually(
            lambda: next(
                (each for each in self.hooked if (each["alert"], each["pipeline"]) == (alert, of)), {}
            ),
            seconds=120,
        )


@pytest.fixture(scope="module")
def night(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    """Alerts, applied twice; then flows that are rejected, rolled back and broken."""
    folder = tmp_path_factory.mktemp("night")
    slipway = Slipway(folder / "home", prefect_api)
    with webhook() as (address, hooked), mail_server() as (port, mailed):
        addresses = {
            "SLIPWAY_ALERT_WEBHOOK": address,
            "SLIPWAY_ALERT_APPRISE": f"mailto://127.0.0.1:{port}?from=a@example.com&to=oncall@example.com"
            "&mode=insecure",
        }
        with httpx.Client(base_url=prefect_api, timeout=30, trust_env=False) as api:
            options = ("--no-deploy-hours", SILENCE)
            applied = [slipway("alerts", DIGITS, *options, **addresses) for _ in range(2)]
            pipeline = written(folder / "small", {}).folder
            for program in (["-c", FAILS], [str(Path(__file__).with_name("tiny_flows.py")), str(pipeline)]):
                subprocess.run(
                    [sys.executable, *program], cwd=REPOSITORY, check=True, timeout=200, capture_output=True,
                    env={**slipway.environment, "PYTHONPATH": str(REPOSITORY)},
                )  # fmt: skip
            _crash(api, "/srv/nightly")
            yield Night(api, slipway, applied, hooked, mailed)
            for each in _ours(api):
                api.delete(f"/automations/{each['id']}")


def _crash(api: httpx.Client, pipeline: str) -> None:
    """Have a run crash as its worker says it of a process that was killed."""
    flow = api.get("/flows/name/retrain").json()["id"]
    asked = {"flow_id": flow, "parameters": {"pipeline": pipeline}, "state": {"type": "RUNNING"}}
    run = api.post("/flow_runs/", json=asked).json()["id"]
    crashed = {"type": "CRASHED", "message": "Process exited with status code: -9"}
    api.post(f"/flow_runs/{run}/set_state", json={"state": crashed, "force": True}).raise_for_status()


def _ours(api: httpx.Client) -> list[dict[str, Any]]:
    found = api.post("/automations/filter", json={}).json()
    return [each for each in found if each["name"].startswith("slipway: ")]


def test_applied_again_there_is_one_of_each(night: Night) -> None:
    """The same automations, with the same ids, and one block of each kind."""
    assert [each.exit_code for each in night.applied] == [0, 0], night.applied[0].output
    assert sorted(each["name"] for each in _ours(night.api)) == [
        "slipway: a model was not deployed",
        "slipway: a run failed",
        "slipway: a version was rolled back by hand",
        "slipway: digits was not deployed for too long",
    ]


def test_the_addresses_are_in_no_automation_and_in_no_output(night: Night) -> None:
    """They are secrets: Prefect keeps them in blocks, and shows them to nobody."""
    shown = night.api.post("/automations/filter", json={}).text + "".join(
        each.output for each in night.applied
    )
    blocks = night.api.post("/block_documents/filter", json={}).text
    assert "oncall@example.com" not in shown + blocks
    assert "/night" not in shown + blocks


@pytest.mark.parametrize(("outcome", "says"), [("rejected", "accuracy is 0.5"), ("rolled_back", "too slow")])
def test_the_webhook_is_told_why_a_model_was_not_deployed(night: Night, outcome: str, says: str) -> None:
    """As JSON: the outcome, the error and its hint, and where to look."""
    told = night.hook(outcome, "small")
    assert told["error"]["message"] == says
    assert told["headline"].startswith("small")
    assert told["folder"].endswith(told["run_id"])
    assert "/runs/flow-run/" in told["url"]


def test_the_failed_checks_are_told(night: Night) -> None:
    """What was observed, and the limit."""
    (check,) = night.hook("rejected", "small")["failed_checks"]
    assert (check["observed"], check["limit"]) == (0.5, 0.9)


@pytest.mark.parametrize(
    ("alert", "pipeline", "says"),
    [("failed", "pipeline", "no such file"), ("crashed", "nightly", "status code: -9")],
)
def test_the_webhook_is_told_of_a_run_that_failed_or_crashed(
    night: Night, alert: str, pipeline: str, says: str
) -> None:
    """As JSON: the pipeline, what ended it, and the page of the run in Prefect's UI."""
    told = night.hook(alert, pipeline)
    assert says in told["error"]["message"]
    assert set(told["error"]) == {"class", "message", "hint"}
    assert told["url"].startswith("http")
    assert "/runs/flow-run/" in told["url"]


def test_a_night_without_a_deployment_is_told(night: Night) -> None:
    """No event had to happen for that: digits were never run."""
    assert night.hook("silent", "digits")["headline"] == "digits: nothing was deployed for 0.003 h"


def test_a_night_without_a_deployment_is_told_in_time(night: Night) -> None:
    """The window begins at the last deployment, not where the window of that one ended (here: 20 s later)."""
    within, reported = 40.0, []
    with webhook() as (address, hooked):
        asked = {"SLIPWAY_ALERT_WEBHOOK": address}
        command = ("alerts", "configs/diabetes", "--no-deploy-hours", f"{within / 3600}")
        assert night.slipway(*command, **asked).exit_code == 0
        time.sleep(within / 2)
        night.emit("slipway.version.deployed", "diabetes")
        deployed = time.monotonic()
        before = _updated(night.api)
        assert night.slipway(*command, **asked).exit_code == 0
        assert _updated(night.api) == before, "an update begins the window anew"
        reported = eventually(
            lambda: [each for each in hooked if each["pipeline"] == "diabetes"], seconds=120
        )
    seconds = time.monotonic() - deployed
    sys.stdout.write(f"silent after {seconds:.1f} s of {within:g}\n")
    assert [each["alert"] for each in reported] == ["silent"]
    assert within - 1 <= seconds < within * 1.05 + EVALUATED_EVERY_SECONDS + 3


def _updated(api: httpx.Client) -> dict[str, str]:
    return {each["name"]: each["updated"] for each in _ours(api)}


def test_an_e_mail_is_sent(night: Night) -> None:
    """By Apprise, to whom its URL says."""
    mail = eventually(
        lambda: next((each for each in night.mailed if "small: rejected" in each), ""), seconds=120
    )
    assert "To: oncall@example.com" in mail
    assert "accuracy is 0.5" in mail


def test_events_name_the_pipeline_and_the_versions(night: Night) -> None:
    """As resources, so that automations and the event feed find them."""
    wanted = {"filter": {"event": {"prefix": ["slipway."]}}, "limit": 50}

    def of_small() -> dict[str, Any]:
        found = night.api.post("/events/filter", json=wanted).json()["events"]
        events = {each["event"]: each for each in found
                  if each["resource"]["prefect.resource.id"] == "slipway.pipeline.small"}  # fmt: skip
        return events if len(events) == 6 else {}

    events = eventually(of_small, seconds=60)
    assert set(events) == {
        "slipway.version.deployed", "slipway.version.rejected", "slipway.version.rolled_back",
        "slipway.run.failed", "slipway.run.trained", "slipway.run.skipped",
    }  # fmt: skip
    related = {each["prefect.resource.role"]: each for each in events["slipway.version.deployed"]["related"]}
    assert related["version"]["prefect.resource.id"] == "slipway.version.small.8"
    assert related["previous-version"]["prefect.resource.id"] == "slipway.version.small.7"
    assert {"flow", "flow-run"} <= set(related)


def test_without_an_address_nothing_is_applied(slipway: Slipway) -> None:
    """And the message says where to give one."""
    refused = slipway("alerts")
    assert refused.exit_code == 2
    assert "SLIPWAY_ALERT_WEBHOOK" in refused.output
