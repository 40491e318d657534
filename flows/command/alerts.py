"""Alerts as code: Prefect automations that notify when a night goes wrong, or when none went well.

Applied again, the same automations and blocks are updated: there is one of each name. An automation that is
as it should be is left alone, since an update begins its time anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import flows.environment  # noqa: F401  (first: it sets what Prefect reads when it is imported)

# isort: split
from prefect.blocks.core import Block
from prefect.blocks.notifications import SlackWebhook
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events import AutomationCore, EventTrigger, Posture
from prefect.events.actions import CallWebhook, SendNotification

from configs.loading.errors import ConfigError
from tasks.reports import run_events

BLOCK = "slipway-alerts"
FLOWS = ("retrain-and-deploy", "retrain", "roll-back")
_NOT_DEPLOYED = ("slipway.version.rejected", "slipway.version.rolled_back")
_ENDED_BADLY = ("Failed", "Crashed", "TimedOut", "Cancelled")
_NO_SILENCE = {"slipway.version.deployed", "slipway.run.skipped"}

_OBJECT = '{{"class": {name}, "message": {message}, "hint": ""}}'

_OF_VERDICT = {
    "alert": "{{ event.payload.outcome|tojson }}",
    "pipeline": "{{ event.payload.pipeline|tojson }}",
    "headline": "{{ event.payload.headline|tojson }}",
    "run_id": "{{ event.payload.run_id|tojson }}",
    "error": "{{ event.payload.error|tojson }}",
    "failed_checks": "{{ event.payload.failed_checks|tojson }}",
    "folder": "{{ event.payload.folder|tojson }}",
    "url": "{{ flow_run|ui_url|tojson }}",
}
# A run that has begun has the pipeline's name in its own. One that ended before has it in its deployment's
# name; else the name of its folder is the best that is known.
_PIPELINE = (
    "{% set words = flow_run.name.split(' ') %}"
    "{% set path = (flow_run.parameters.pipeline|string).split('/')|select|list|last %}"
    "{% if words|length > 1 %}{{ words[2 if words[0] == 'roll' else 0]|tojson }}"
    "{% elif deployment and deployment.name.startswith('nightly-') %}{{ deployment.name[8:]|tojson }}"
    "{% else %}{{ path|tojson }}{% endif %}"
)
_OF_FLOW_RUN = {
    "alert": "{{ flow_run.state.name|lower|tojson }}",
    "pipeline": _PIPELINE,
    "headline": "{{ flow_run.name|tojson }}",
    "error": _OBJECT.format(
        name="{{ flow_run.state.name|tojson }}", message="{{ flow_run.state.message|tojson }}"
    ),
    "url": "{{ flow_run|ui_url|tojson }}",
}


def apply(pipelines: Sequence[str], webhook: str, apprise: str, no_deploy_hours: float) -> list[str]:
    """Make or update the alerts on the Prefect server of PREFECT_API_URL; return their names.

    `webhook` gets a JSON object, `apprise` a text; at least one is given. For each of `pipelines` (names)
    the absence of a deployment for `no_deploy_hours` is an alert too.
    """
    if not webhook and not apprise:
        raise ConfigError(
            "no address to notify", "--webhook URL (SLIPWAY_ALERT_WEBHOOK), --apprise URL, or both"
        )
    blocks = _saved(webhook, apprise)
    wanted = [_wrong(blocks), _ended_badly(blocks), _by_hand(blocks)]
    wanted += [_silent(pipeline, no_deploy_hours, blocks) for pipeline in pipelines]
    with get_client(sync_client=True) as client:
        for automation in wanted:
            _put(client, automation)
    return [automation.name for automation in wanted]


def _saved(webhook: str, apprise: str) -> dict[type[Block], Any]:
    """Save the addresses as blocks, in which Prefect encrypts them, and return their ids."""
    blocks: list[Block] = []
    if webhook:
        blocks.append(Webhook(url=webhook))
    if apprise:
        # Prefect's one notification block that takes any Apprise URL, whatever its name says.
        blocks.append(SlackWebhook(url=apprise))
    return {type(block): block.save(BLOCK, overwrite=True) for block in blocks}


def _wrong(blocks: dict[type[Block], Any]) -> AutomationCore:
    return AutomationCore(
        name="slipway: a model was not deployed",
        description="A gate rejected the model, or it was rolled back. What served before still serves.",
        trigger=_on_event_of_a_pipeline(*_NOT_DEPLOYED),
        actions=_actions(
            blocks, _OF_VERDICT, "{{ event.payload.headline }}",
            "{{ event.payload.error.message }}\n{{ event.payload.error.hint }}\n{{ event.payload.folder }}",
        ),
    )  # fmt: skip


def _ended_badly(blocks: dict[type[Block], Any]) -> AutomationCore:
    return AutomationCore(
        name="slipway: a run failed",
        description="A run ended in an error, was killed or cancelled, or could not even be started.",
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{state}" for state in _ENDED_BADLY},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": list(FLOWS)},
            posture=Posture.Reactive, threshold=1,
        ),
        actions=_actions(
            blocks, _OF_FLOW_RUN, "{{ flow_run.name }}: {{ flow_run.state.name }}",
            "{{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
        ),
    )  # fmt: skip


def _by_hand(blocks: dict[type[Block], Any]) -> AutomationCore:
    return AutomationCore(
        name="slipway: a version was rolled back by hand",
        description="A person had an earlier version serve again, by the flow roll-back.",
        trigger=_on_event_of_a_pipeline("slipway.version.restored"),
        actions=_actions(blocks, _OF_VERDICT, "{{ event.payload.headline }}", "{{ flow_run|ui_url }}"),
    )


def _on_event_of_a_pipeline(*names: str) -> EventTrigger:
    return EventTrigger(
        expect=set(names), match={"prefect.resource.id": "slipway.pipeline.*"}, posture=Posture.Reactive,
        threshold=1,
    )  # fmt: skip


def _silent(pipeline: str, hours: float, blocks: dict[type[Block], Any]) -> AutomationCore:
    headline = f"{pipeline}: nothing was deployed for {hours:g} h"
    payload = {"alert": '"silent"', "pipeline": json.dumps(pipeline), "headline": json.dumps(headline)}
    return AutomationCore(
        name=f"slipway: {pipeline} was not deployed for too long",
        description=f"No version of {pipeline} was deployed for {hours:g} hours, and no night was skipped.",
        trigger=EventTrigger(
            # Without `after`, Prefect counts from the end of the window that the last deployment was in.
            after=_NO_SILENCE, expect=_NO_SILENCE,
            match={"prefect.resource.id": run_events.resource(pipeline)["prefect.resource.id"]},
            posture=Posture.Proactive, threshold=1, within=timedelta(hours=hours),
        ),
        actions=_actions(blocks, payload, headline, "Does the schedule run? See slipway status."),
    )  # fmt: skip


def _actions(blocks: dict[type[Block], Any], payload: dict[str, str], subject: str, body: str) -> list[Any]:
    actions: list[Any] = []
    if Webhook in blocks:
        fields = ", ".join(f"{json.dumps(name)}: {value}" for name, value in payload.items())
        actions.append(CallWebhook(block_document_id=blocks[Webhook], payload=f"{{{fields}}}"))
    if SlackWebhook in blocks:
        actions.append(SendNotification(block_document_id=blocks[SlackWebhook], subject=subject, body=body))
    return actions


def _put(client: SyncPrefectClient, automation: AutomationCore) -> None:
    found = client.read_automations_by_name(automation.name)
    if not found:
        client.create_automation(automation)
    elif AutomationCore.model_validate(found[0].model_dump()) != automation:
        client.update_automation(found[0].id, automation)
