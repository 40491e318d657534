"""How a run ended, as an event for Prefect's automations: docs/how-to/alerts.md.

    slipway.version.deployed      the new version answers
    slipway.version.rejected      a gate said no; what served before still serves
    slipway.version.rolled_back   published, found wanting, withdrawn
    slipway.version.restored      an earlier version serves again, by the flow `roll-back`
    slipway.run.failed            ended by an error before anything was published
    slipway.run.cancelled         stopped by a person, a signal, or the end of its machine
    slipway.run.trained           a candidate was left (`slipway retrain`)
    slipway.run.skipped           examples and configuration are those of the version that serves

The resource is `slipway.pipeline.<name>`. Related are the version and the one before it, by the id
`slipway.version.<name>.<number>`, and what Prefect adds: flow run, flow, deployment, work pool.
"""

from __future__ import annotations

import logging
from typing import Any

from prefect.events import emit_event
from pydantic_core import to_jsonable_python

from tasks.core.artifacts import Verdict

_log = logging.getLogger(__name__)
_OF_VERSIONS = ("deployed", "rejected", "rolled_back", "restored")


def name(verdict: Verdict) -> str:
    """Return the name of the event."""
    return f"slipway.{'version' if verdict.outcome in _OF_VERSIONS else 'run'}.{verdict.outcome}"


def resource(pipeline: str) -> dict[str, str]:
    """Return the resource that events of a pipeline are about."""
    return {"prefect.resource.id": f"slipway.pipeline.{pipeline}", "prefect.resource.name": pipeline}


def tell(verdict: Verdict, headline: str, folder: str) -> None:
    """Send the event; a server that cannot be told changes nothing. Nothing secret is in it."""
    try:
        emit_event(
            name(verdict),
            resource=resource(verdict.pipeline),
            related=_related(verdict),
            payload=_payload(verdict, headline, folder),
        )
    except Exception as error:
        _log.warning("the event %s was not sent: %s", name(verdict), error)


def _related(verdict: Verdict) -> list[dict[str, str]]:
    numbered = {"version": verdict.version, "previous-version": verdict.previous_version}
    return [
        {
            "prefect.resource.id": f"slipway.version.{verdict.pipeline}.{number}",
            "prefect.resource.role": role,
            "prefect.resource.name": f"{verdict.pipeline} version {number}",
        }
        for role, number in numbered.items()
        if number is not None
    ]


def _payload(verdict: Verdict, headline: str, folder: str) -> dict[str, Any]:
    told = {
        "headline": headline,
        "pipeline": verdict.pipeline,
        "run_id": verdict.run_id,
        "outcome": verdict.outcome,
        "version": verdict.version,
        "previous_version": verdict.previous_version,
        "endpoint": verdict.endpoint,
        "metrics": verdict.metrics,
        "baseline": verdict.baseline,
        "seconds": round(sum(stage.seconds for stage in verdict.stages), 3),
        "failed_checks": [check for check in verdict.checks if not check.passed],
        "error": verdict.error,
        "folder": folder,
    }
    return dict(to_jsonable_python(told, inf_nan_mode="strings"))
