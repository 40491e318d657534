"""The slices `export` and `validation`: the SavedModel, and what it must answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from configs.slices import Slice, Tolerance


class ExportConfig(Slice):
    """The SavedModel and the folder of versions that servers watch."""

    model_base_path: Path | None = None
    """Folder whose children are versions. By default `$SLIPWAY_HOME/models/<name>`; a relative path is
    relative to the YAML."""

    receivers: Annotated[tuple[Literal["parsing", "raw"], ...], Field(min_length=1, max_length=2)] = (
        "parsing",
    )
    """Serving input receivers: `parsing` takes serialized tf.Examples (Predict, Classify, Regress), `raw`
    takes feature tensors (Predict). With both, the raw signatures are named `raw:<signature>`."""

    version_names: Literal["timestamp", "sequential"] = "timestamp"
    """Number of the next version: seconds since 1970, or one more than the last (`0001`, `0002` …).
    Either way it only rises."""

    keep_versions: Annotated[int, Field(ge=2)] = 5
    """Newest versions that stay on disk. The live one and the one before it always do."""

    @model_validator(mode="after")
    def _names_a_receiver_once(self) -> ExportConfig:
        if len(set(self.receivers)) != len(self.receivers):
            raise ValueError("name each receiver once")
        return self


class ValidationConfig(Slice):
    """The exported SavedModel, run in a fresh process on held-out tf.Examples."""

    samples: PositiveInt = 64
    """Most examples of the sample split that are run."""

    batch_sizes: Annotated[tuple[PositiveInt | Literal["all"], ...], Field(min_length=1)] = (1, 2, "all")
    """Batch sizes in which every signature runs over the samples."""

    tolerance: Tolerance = "exact"
    """How far an output may lie from what `estimator.predict` says: `exact`, or `{ulps: 4}`."""
