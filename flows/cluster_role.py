"""A process of a cluster that trains across machines: what a worker host runs (docs/how-to/clusters.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flows.environment  # noqa: F401  (first: it sets what Prefect reads when it is imported)

# isort: split
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from tasks.clusters.role import play
from tasks.core.errors import SlipwayError


@flow(name="cluster-role")
def cluster_role(folder: str, process: str) -> State[Any]:
    """Run one process of the cluster until training ends.

    Args:
        folder: where the cluster meets, a folder in the run's own that every host sees.
        process: which one, such as worker-0 or ps-1.
    """
    try:
        return Completed(message=play(Path(folder), process, str(flow_run.id)))
    except SlipwayError as error:
        # The chief reads what it was from the state's name: whether to start it again.
        return Failed(name=type(error).__name__, message=str(error))
