"""What stays on disk of runs: the slice `runs`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from configs.schema.slices import Slice


class KeepConfig(Slice):
    """A run's folder is removed once it is neither among the newest `number` nor younger than `days`."""

    number: Annotated[int, Field(ge=1)] = 30
    """Newest runs that stay, whatever they ended in."""
    days: Annotated[float, Field(ge=0)] = 30
    """Days after its last change for which any run stays."""


class RunsConfig(Slice):
    """What stays on disk of runs."""

    keep: KeepConfig | None = KeepConfig()
    """How long runs stay; null for ever. A run also stays while a version of it is on disk, while it may be
    resumed, and while its deploy is unfinished. Applied when a run ends, and by `slipway gc`. Examples of
    ended runs are compressed, but for the newest."""
