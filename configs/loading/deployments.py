"""What a `prefect.yaml` may say, key by key: Prefect itself takes a misspelt key without a word.

Only the keys that Slipway's own file uses; what they mean is in Prefect's documentation of `prefect.yaml`.
"""

from __future__ import annotations

import difflib
import zoneinfo
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from configs.loading.pipelines import load_strictly
from configs.schema.slices import Slice


def timezone_problem(timezone: str) -> str | None:
    """Return what is wrong with the name of a time zone; None if it is valid."""
    if timezone in (known := zoneinfo.available_timezones()):
        return None
    near = difflib.get_close_matches(timezone, known, n=3) or ["Etc/UTC", "Europe/Berlin"]
    return f"not a time zone of the IANA data base; such are {', '.join(near)}"


class Schedule(Slice):
    """When a deployment is run."""

    cron: str
    timezone: str
    slug: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    active: bool = True

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, timezone: str) -> str:
        if (problem := timezone_problem(timezone)) is not None:
            raise ValueError(problem)
        return timezone


class ConcurrencyLimit(Slice):
    """How many runs of a deployment there may be at once, and what becomes of one more."""

    limit: Annotated[int, Field(ge=1)]
    collision_strategy: Literal["CANCEL_NEW", "ENQUEUE"]
    grace_period_seconds: Annotated[int, Field(ge=60, le=86400)] | None = None


class JobVariables(Slice):
    """What a work pool's base job template takes: those of the pools `process` and `docker`."""

    env: dict[str, str] = {}
    working_dir: str | None = None
    stream_output: bool = True
    image: str | None = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    auto_remove: bool | None = None
    networks: tuple[str, ...] | None = None
    network_mode: str | None = None
    volumes: tuple[str, ...] | None = None
    privileged: bool | None = None
    container_create_kwargs: dict[str, Any] | None = None


class WorkPool(Slice):
    """Who takes the runs."""

    name: str
    job_variables: JobVariables = JobVariables()


class Deployment(Slice):
    """One deployment."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    description: str
    entrypoint: Annotated[str, Field(pattern=r"^[\w./-]+\.py:[A-Za-z_]\w*$")]
    tags: tuple[str, ...] = ()
    parameters: dict[str, Any]
    schedules: tuple[Schedule, ...] = ()
    concurrency_limit: ConcurrencyLimit
    work_pool: WorkPool
    pull: tuple[dict[str, dict[str, str]], ...] | None = None


class PrefectFile(Slice):
    """All of a `prefect.yaml`."""

    model_config = ConfigDict(populate_by_name=True)

    name: str
    prefect_version: Annotated[str, Field(alias="prefect-version")]
    definitions: dict[str, dict[str, Any]] = {}
    """What deployments have in common, by YAML anchors; Prefect does not read it."""
    pull: tuple[dict[str, dict[str, str]], ...]
    deployments: Annotated[tuple[Deployment, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_each_once(self) -> PrefectFile:
        names = [deployment.name for deployment in self.deployments]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two deployments are named {twice[0]!r}: Prefect would keep the last")
        return self


def load_deployments(file: Path) -> PrefectFile:
    """Read and validate a prefect.yaml. Raises ConfigError, with file, line and key of all that is wrong."""
    return load_strictly(PrefectFile, file)
