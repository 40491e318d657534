"""What a `pipeline.yaml` may say: `PipelineConfig`, composed of frozen slices.

Keys, types, units, ranges, defaults and their meaning live in the slices and nowhere else. The docstring
under a key is what `slipway schema` and docs/reference/pipeline.md show for it. Reading YAML is `loading.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from configs.data import DataConfig, SplitConfig
from configs.export import ExportConfig, ValidationConfig, ValidationInput
from configs.home import default_model_base_path
from configs.model import ModelConfig
from configs.serving import OWN_FLAGS, DeploymentConfig, ServerConfig, SmokeTestConfig
from configs.slices import Slice, Tolerance, Ulps
from configs.training import EvaluationConfig, Threshold, TrainingConfig

__all__ = [
    "OWN_FLAGS",
    "DataConfig",
    "DeploymentConfig",
    "EvaluationConfig",
    "ExportConfig",
    "ModelConfig",
    "PipelineConfig",
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


class PipelineConfig(Slice):
    """All of a `pipeline.yaml`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
    """Name of the pipeline and of the served model: lower-case letters, digits, `-` and `_`."""

    data: DataConfig
    model: ModelConfig
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    export: ExportConfig = ExportConfig()
    validation: ValidationConfig = ValidationConfig()
    deployment: DeploymentConfig = DeploymentConfig()
    server: ServerConfig = ServerConfig()
    smoke_test: SmokeTestConfig = SmokeTestConfig()

    @model_validator(mode="after")
    def _server_fits_target(self) -> PipelineConfig:
        if self.server.image is not None and self.deployment.target == "process":
            raise ValueError("server.image needs deployment.target docker or auto, not process")
        if self.server.executable is not None and self.deployment.target == "docker":
            raise ValueError("server.executable needs deployment.target process or auto, not docker")
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

    @property
    def samples(self) -> int:
        """Most examples of the sample split that any stage asks about."""
        return max(self.validation.samples, self.smoke_test.samples)

    def model_base_path(self, folder: Path) -> Path:
        """Return the absolute folder of versions; `folder` is the one that holds the YAML."""
        configured = self.export.model_base_path
        return folder / configured.expanduser() if configured else default_model_base_path(self.name)
