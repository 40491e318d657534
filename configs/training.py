"""The slices `training` and `evaluation`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from configs.slices import Slice


class TrainingConfig(Slice):
    """How long to train, on what, and how often to save."""

    max_steps: PositiveInt = 1000
    """Global step at which training ends. A total: resumed training goes on up to it."""

    batch_size: PositiveInt = 128
    """Examples a step."""

    save_checkpoints_steps: PositiveInt | None = None
    """Steps between checkpoints. By default a tenth of max_steps, unless save_checkpoints_secs is set."""

    save_checkpoints_secs: PositiveInt | None = None
    """Seconds between checkpoints, instead of steps."""

    keep_checkpoint_max: Annotated[int, Field(ge=0)] = 5
    """Newest checkpoints that stay on disk; 0 keeps all."""

    keep_checkpoint_every_n_hours: PositiveFloat = 10_000.0
    """Besides these, one checkpoint that stays for every so many hours of training."""

    log_every_steps: PositiveInt = 100
    """Steps between two reports of loss and steps/s."""

    shuffle_buffer: PositiveInt = 10_000
    """Examples among which the next batch is drawn."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """`gpu` fails before training starts where there is none; `auto` takes one where there is."""

    gpu_memory_growth: bool = True
    """Let TensorFlow take GPU memory as it needs it, instead of all of it at once."""

    seed: int = 1
    """Seed of TensorFlow's random numbers and of the order of the examples."""

    @model_validator(mode="after")
    def _saves_by_one_clock(self) -> TrainingConfig:
        if self.save_checkpoints_steps is not None and self.save_checkpoints_secs is not None:
            raise ValueError("give one of 'save_checkpoints_steps' and 'save_checkpoints_secs'")
        return self

    @property
    def checkpoint_steps(self) -> int | None:
        """Steps between two checkpoints; None where seconds are counted instead."""
        if self.save_checkpoints_secs is not None:
            return None
        return self.save_checkpoints_steps or max(1, self.max_steps // 10)


class Threshold(Slice):
    """The range in which a metric must lie, ends included."""

    min: float | None = None
    """Least acceptable value."""

    max: float | None = None
    """Largest acceptable value."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Threshold:
        if self.min is None and self.max is None:
            raise ValueError("give 'min', 'max' or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}: nothing could pass")
        return self


class EvaluationConfig(Slice):
    """The gate that a trained model must pass on the eval split."""

    thresholds: dict[str, Threshold] = {}
    """Metric name (as the Estimator reports it: accuracy, average_loss …) to the range it must lie in."""

    batch_size: PositiveInt = 256
    """Examples an evaluation step."""
