"""What a `pipeline.yaml` may say: `PipelineConfig`, composed of frozen slices.

Keys, types, units, ranges, defaults and their meaning live in the slices and nowhere else. The docstring
under a key is what `slipway schema` and docs/reference/pipeline.md show for it. Reading YAML is `loading.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from configs.schema.answers import AnswersConfig, Near, Tolerance, Ulps
from configs.schema.data import DataConfig, SplitConfig
from configs.schema.export import ExportConfig, ValidationConfig, ValidationInput
from configs.schema.home import default_model_base_path
from configs.schema.model import ModelConfig
from configs.schema.runs import RunsConfig
from configs.schema.serving import (
    OWN_FLAGS,
    CanaryConfig,
    DeploymentConfig,
    GoldenConfig,
    LatencyConfig,
    LimitsConfig,
    ServerConfig,
    SmokeTestConfig,
)
from configs.schema.slices import Slice
from configs.schema.training import EvaluationConfig, Threshold, TrainingConfig

__all__ = [
    "OWN_FLAGS",
    "AnswersConfig",
    "CanaryConfig",
    "DataConfig",
    "DeploymentConfig",
    "EvaluationConfig",
    "ExportConfig",
    "GoldenConfig",
    "LatencyConfig",
    "LimitsConfig",
    "ModelConfig",
    "Name",
    "Near",
    "PipelineConfig",
    "Recipe",
    "RunsConfig",
    "ServerConfig",
    "SmokeTestConfig",
    "SplitConfig",
    "Threshold",
    "Tolerance",
    "TrainingConfig",
    "Ulps",
    "ValidationConfig",
    "ValidationInput",
]


class Recipe(Slice):
    """What an Estimator is made of: every stage that trains, evaluates or exports it builds it anew."""

    model: ModelConfig
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


_PASSWORD_IN_URL = re.compile(r"://[^/\s:@]*:[^/\s@]+@")


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict | list | tuple):
        for each in values.values() if isinstance(values, dict) else values:
            yield from _texts(each)


class PipelineConfig(Slice):
    """All of a `pipeline.yaml`."""

    name: Name
    """Name of the pipeline and of the served model: lower-case letters, digits, `-` and `_`."""

    data: DataConfig
    model: ModelConfig
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    export: ExportConfig = ExportConfig()
    answers: AnswersConfig = AnswersConfig()
    validation: ValidationConfig = ValidationConfig()
    deployment: DeploymentConfig = DeploymentConfig()
    server: ServerConfig = ServerConfig()
    golden: GoldenConfig = GoldenConfig()
    smoke_test: SmokeTestConfig = SmokeTestConfig()
    runs: RunsConfig = RunsConfig()

    @model_validator(mode="before")
    @classmethod
    def _holds_no_password(cls, values: Any) -> Any:
        if any(_PASSWORD_IN_URL.search(text) for text in _texts(values)):
            raise ValueError("an address holds a password: read it in data.ingest from one of data.secrets")
        return values

    @model_validator(mode="after")
    def _server_fits_target(self) -> PipelineConfig:
        if self.server.image is not None and self.deployment.target == "process":
            raise ValueError("server.image needs deployment.target docker or auto, not process")
        if self.server.executable is not None and self.deployment.target == "docker":
            raise ValueError("server.executable needs deployment.target process or auto, not docker")
        if self.server.limits != LimitsConfig() and (
            self.server.executable is not None or self.deployment.target == "process"
        ):
            raise ValueError("server.limits are a container's: a process is not limited")
        if not self.server.address.is_loopback and self.deployment.target != "docker":
            raise ValueError("server.address needs deployment.target docker: a process listens on 127.0.0.1")
        if self.server != ServerConfig() and self.deployment.target == "external":
            raise ValueError("server says what a run starts: deployment.target external starts none")
        return self

    @model_validator(mode="after")
    def _has_a_best_checkpoint(self) -> PipelineConfig:
        if self.export.checkpoint == "best" and self.training.best_checkpoint is None:
            raise ValueError("export.checkpoint best needs training.best_checkpoint: {metric, goal}")
        return self

    @model_validator(mode="after")
    def _has_a_graph_for_its_meta_graphs(self) -> PipelineConfig:
        if self.model.graph is None and self.export.meta_graphs != (("serve",),):
            raise ValueError("export.meta_graphs are of a graph: they need model.graph")
        return self

    @model_validator(mode="after")
    def _trains_no_saved_model(self) -> PipelineConfig:
        if self.model.saved_model is None:
            return self
        if self.training != TrainingConfig():
            raise ValueError("model.saved_model is not trained: remove 'training'")
        made = ExportConfig()
        if (self.export.receivers, self.export.as_text, self.export.checkpoint) != (
            made.receivers, made.as_text, made.checkpoint
        ):  # fmt: skip
            raise ValueError(
                "model.saved_model is published as it is: remove export.receivers, as_text and checkpoint"
            )
        if self.data.gates.unchanged != "train":
            raise ValueError(
                "data.gates.unchanged: it does not see that model.saved_model changed; remove it"
            )
        unknown = [name for name in self.model.outputs if name not in self.data.label]
        if unknown:
            raise ValueError(f"model.outputs names {unknown[0]!r}, which is not one of data.label")
        return self

    @model_validator(mode="after")
    def _has_what_is_sliced(self) -> PipelineConfig:
        known = {**self.data.features, **self.data.label}
        for name in self.evaluation.slices:
            spec = known.get(name)
            if spec is None:
                raise ValueError(f"evaluation.slices names {name!r}, which is not one of {', '.join(known)}")
            if spec.kind != "fixed_len" or spec.dtype == "float32" or spec.shape not in ((), (1,)):
                raise ValueError(
                    f"evaluation.slices names {name!r}: slices need one int64 or string an example"
                )
        return self

    @model_validator(mode="after")
    def _hashes_what_can_be(self) -> PipelineConfig:
        for name, fate in self.golden.features.items():
            spec = self.data.features.get(name)
            if fate == "hash" and spec is not None and spec.dtype == "float32":
                raise ValueError(f"golden.features.{name}: floats cannot be hashed; drop it or keep it")
        return self

    @property
    def recipe(self) -> Recipe:
        """What the Estimator is made of."""
        return Recipe(model=self.model, data=self.data, training=self.training, evaluation=self.evaluation)

    def model_base_path(self, folder: Path) -> Path:
        """Return the absolute folder of versions; `folder` is the one that holds the YAML."""
        configured = self.export.model_base_path
        return folder / configured.expanduser() if configured else default_model_base_path(self.name)
