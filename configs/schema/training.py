"""The slices `training` and `evaluation`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from configs.schema.accelerators import Accelerator, Strategy
from configs.schema.cluster import ClusterConfig
from configs.schema.slices import Slice


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]
"""A Python regular expression, found anywhere in a variable's name; `^` and `$` anchor it."""


class WarmStartConfig(Slice):
    """Values that variables begin with, in place of their initializers, where training begins afresh."""

    from_: Annotated[str, Field(alias="from", min_length=1)]
    """Where they come from: `serving`, the version now served (none yet: a fresh start); or a checkpoint's
    prefix, a model_dir or a SavedModel's folder, relative to the YAML."""

    include: tuple[Pattern, ...] = ()
    """Names of the model's variables to restore. By default all that the checkpoint has, but the
    optimizer's and global_step: these only where an entry is exactly their name."""

    exclude: tuple[Pattern, ...] = ()
    """Names of the model's variables that are initialised all the same."""

    rename: dict[str, str] = {}
    """Name in the checkpoint to name in the model, for variables whose names differ."""


class BestCheckpointConfig(Slice):
    """The best checkpoint is kept, whatever `keep_checkpoint_max` removes."""

    metric: Annotated[str, Field(min_length=1)]
    """A metric of the eval split, as the Estimator reports it; measured at each checkpoint."""

    goal: Literal["max", "min"]
    """Which is better: the largest or the smallest."""


class TrainingConfig(Slice):
    """How long to train, on what, and how often to save."""

    max_steps: PositiveInt = 1000
    """Global step at which training ends. A total: resumed training goes on up to it."""

    batch_size: PositiveInt = 128
    """Examples a step: those of all replicas of a synchronous strategy together."""

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

    accelerator: Accelerator = "auto"
    """`gpu` fails before training starts where there is none; `auto` takes one where there is. A mapping
    says more: {device: gpu, gpus: [0, 1], memory_growth: true, memory_limit_mb: 4096}."""

    strategy: Strategy = "none"
    """How the model is shared among devices, as tf.distribute has it."""

    cluster: ClusterConfig | None = None
    """Several processes that train one model: {workers: 2, parameter_servers: 1}. By default one."""

    seed: int = 1
    """Seed of TensorFlow's random numbers and of the order of the examples."""

    deterministic: bool = False
    """Bit-identical variables, killed and resumed or not: the batch of a step depends on seed, epoch and
    step only, and TensorFlow's ops are deterministic. Costs some speed. Random ops inside the model, such
    as dropout, must be the stateless ones, seeded by the global step: no checkpoint holds another's state."""

    stall_timeout_seconds: PositiveFloat = 600.0
    """Without a new step for so long, the trainer is killed, and training goes on from its last checkpoint.
    What comes before the first step (building the graph, filling shuffle_buffer) counts as well."""

    best_checkpoint: BestCheckpointConfig | None = None
    """`{metric: accuracy, goal: max}` keeps the best checkpoint in the run's checkpoints/best; see
    export.checkpoint."""

    warm_start: WarmStartConfig | None = None
    """Variables that begin with values of another model: {from: serving | PATH, include, exclude, rename}."""

    @model_validator(mode="after")
    def _cluster_fits_strategy(self) -> TrainingConfig:
        if self.cluster is not None and (problem := self.cluster.problem_with(self.strategy)):
            raise ValueError(problem)
        if self.cluster is not None and self.deterministic:
            raise ValueError("deterministic needs one process: workers of a cluster race each other")
        if self.strategy in ("mirrored", "multi_worker_mirrored") and self.warm_start is not None:
            reason = "of a variable's copies, only the first would begin with the restored value"
            raise ValueError(f"warm_start and strategy {self.strategy} exclude each other: {reason}")
        return self

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


def _margin_form(value: Any) -> str:
    return "part" if isinstance(value, str) else "number"


Margin = Annotated[
    Annotated[float, Field(ge=0), Tag("number")]
    | Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?%$"), Tag("part")],
    Discriminator(_margin_form),
]
"""A difference (0.01), or a part of the served version's value ("5%")."""


class Change(Slice):
    """How much worse than the served version's a metric may be, on the same examples."""

    max_drop: Margin | None = None
    """How far it may fall below, where more is better: 0.01, or 5% of the served version's value."""

    max_rise: Margin | None = None
    """How far it may rise above, where less is better."""

    @model_validator(mode="after")
    def _limits_something(self) -> Change:
        if self.max_drop is None and self.max_rise is None:
            raise ValueError("give 'max_drop', 'max_rise' or both")
        return self


class SliceGates(Slice):
    """What metrics must be for every value of `evaluation.slices`, each by itself."""

    min_examples: PositiveInt = 30
    """Slices of fewer examples are told, and no gate looks at them."""

    thresholds: dict[str, Threshold] = {}
    """Metric to the range that it must lie in."""

    changes: dict[str, Change] = {}
    """Metric to how much worse than the served version's, of the same slice, it may be."""


class EvaluationConfig(Slice):
    """The gate that a trained model must pass on the eval split."""

    thresholds: dict[str, Threshold] = {}
    """Metric name (as the Estimator reports it: accuracy, average_loss …) to the range it must lie in."""

    changes: dict[str, Change] = {}
    """Metric to how much worse than that of the version served now it may be, on tonight's eval split:
    {accuracy: {max_drop: 0.01}, average_loss: {max_rise: 5%}}."""

    by_slice: SliceGates = SliceGates()

    no_baseline: Literal["accept", "reject"] = "accept"
    """What `changes` say where nothing is served yet, or what is served cannot be measured."""

    batch_size: PositiveInt = 256
    """Examples an evaluation step."""

    gate: Literal["enforced", "reported"] = "enforced"
    """Whether a missed threshold rejects the candidate, or is only told in the verdict. `slipway run
    --force` is `reported`, for one run. No other gate can be passed over."""

    slices: tuple[str, ...] = ()
    """Features or labels (one int64 or string an example) whose every value is evaluated by itself, such
    as [country]: the 20 commonest, for people to look at, and for by_slice."""

    baseline: Literal["served", "none"] = "served"
    """Also evaluate the version that is served now on tonight's eval split, for comparison; or do not."""

    @model_validator(mode="after")
    def _has_what_gates_look_at(self) -> EvaluationConfig:
        if (self.changes or self.by_slice.changes) and self.baseline == "none":
            raise ValueError("changes are from the version served: they need baseline: served")
        if (self.by_slice.thresholds or self.by_slice.changes) and not self.slices:
            raise ValueError("by_slice needs 'slices': the features to slice by")
        return self
