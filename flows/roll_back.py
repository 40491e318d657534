"""An earlier version serves again, without training: for a button in the UI, or an automation.

In a terminal `slipway rollback PIPELINE` does the same without Prefect, in seconds.
"""

from __future__ import annotations

from typing import Any

import configs.environment  # noqa: F401  (first: it sets what Prefect reads when it is imported)

# isort: split
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from configs.loading import load_pipeline
from flows.policy import run_name
from tasks.reports import prefect_artifacts
from tasks.rolling_back import roll_back as serve_earlier_version


@flow(name="roll-back", flow_run_name=run_name)
def roll_back(pipeline: str, to: int | None = None) -> State[Any]:
    """Serve an earlier version again, proven by its answers; those after it are withdrawn.

    Args:
        pipeline: folder that holds a pipeline.yaml, or a YAML file.
        to: number of the version; by default the one before the live one.
    """
    loaded = load_pipeline(pipeline)
    prefect_artifacts.tag(loaded.config.name)
    done = serve_earlier_version(loaded, to)
    return Completed(name="Restored", message=done.proved())
