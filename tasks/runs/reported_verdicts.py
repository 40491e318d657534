"""The verdict as JSON in Prefect, so that who triggered a run reads it without the worker's disk."""

from __future__ import annotations

import json
import logging
from uuid import UUID

from prefect.artifacts import Artifact
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
)
from prefect.client.schemas.sorting import ArtifactSort
from pydantic import TypeAdapter

from tasks.core.artifacts import Verdict
from tasks.runs.run_folders import verdict_json

# The UI lists no artifacts of this type: the verdict as people read it stands there already.
_TYPE = "result"
_DESCRIPTION = "verdict.json"

_log = logging.getLogger(__name__)


def tell(verdict: Verdict) -> None:
    """Store the verdict in Prefect, as an artifact of the current flow run.

    Where the server cannot be told, the verdict stands, and a warning is logged.
    """
    told_so = json.loads(verdict_json(verdict))
    try:
        Artifact(type=_TYPE, description=_DESCRIPTION, data=told_so).create()
    except Exception as error:
        _log.warning("Prefect's server cannot be told of the verdict: %s", error)


def told(client: SyncPrefectClient, flow_run: UUID) -> Verdict | None:
    """Return the last verdict that the flow run told; None where it told none, as one that was killed."""
    kept = client.read_artifacts(
        artifact_filter=ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run]), type=ArtifactFilterType(any_=[_TYPE])
        ),
        sort=ArtifactSort.CREATED_DESC,
    )
    verdicts = [each.data for each in kept if each.description == _DESCRIPTION]
    return TypeAdapter(Verdict).validate_json(str(verdicts[0])) if verdicts else None
