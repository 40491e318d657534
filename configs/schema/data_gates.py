"""The slice `data.gates`: what tonight's examples must be like before anything is trained on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from configs.schema.features import FeatureSpec, FeatureSpecs
from configs.schema.slices import Slice

Share = Annotated[float, Field(ge=0, le=1)]
"""A part of a whole: 0.05 is five percent."""


class FeatureLimits(Slice):
    """What one feature, or label, must be like over all of tonight's examples, whatever their split."""

    required: bool = False
    """Some example must have it. (A feature without a default that one example lacks is an error of the
    data anyway; this is about those that may be missing.)"""

    max_missing: Share | None = None
    """Largest share of the examples that may have no value of it, or one that is NaN or infinite."""

    min: float | None = None
    """Least value of a number."""

    max: float | None = None
    """Largest value of a number."""

    max_outside: Share = 0.0
    """Share of the values that may lie outside `min` and `max` all the same; NaN does."""

    vocabulary: tuple[str, ...] | tuple[int, ...] | None = None
    """Values that are known, of an int64 or a string."""

    vocabulary_file: str | None = None
    """The same, a word a line, in a file relative to the YAML."""

    max_unknown: Share = 0.0
    """Share of the values that may be none of these."""

    min_share: Share | None = None
    """Least share that each value of an int64 or a string must have; one of the vocabulary that does not
    occur has 0. For labels: how rare the rarest class may be. The 256 commonest values are looked at."""

    max_share: Share | None = None
    """Largest share that one value may have: how common the commonest class may be."""

    @model_validator(mode="after")
    def _is_consistent(self) -> FeatureLimits:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}: nothing could pass")
        if self.vocabulary is not None and self.vocabulary_file is not None:
            raise ValueError("give one of 'vocabulary' and 'vocabulary_file'")
        if self.max_outside and not self.has_range:
            raise ValueError("max_outside needs 'min', 'max' or both")
        if self.max_unknown and not self.has_vocabulary:
            raise ValueError("max_unknown needs 'vocabulary' or 'vocabulary_file'")
        return self

    @property
    def has_range(self) -> bool:
        """Whether values are limited."""
        return self.min is not None or self.max is not None

    @property
    def has_vocabulary(self) -> bool:
        """Whether it is said which values are known."""
        return self.vocabulary is not None or self.vocabulary_file is not None

    def problem_with(self, spec: FeatureSpec) -> str:
        """Return which of these gates a feature of that type cannot have; "" if none."""
        if self.has_range and spec.dtype == "string":
            return "min and max are of numbers, and it is a string"
        counted = self.has_vocabulary or self.min_share is not None or self.max_share is not None
        if counted and spec.dtype == "float32":
            return "vocabulary, min_share and max_share are of int64 and string, and it is a float32"
        words = {str: "string", int: "int64"}
        found = {words[type(word)] for word in self.vocabulary or ()}
        if found and found != {spec.dtype}:
            return f"its vocabulary holds {' and '.join(sorted(found))}, and it is {spec.dtype}"
        return ""


class DriftConfig(Slice):
    """How far tonight's examples may lie from those that the served version was made of."""

    measure: Literal["jensen_shannon", "psi"] = "jensen_shannon"
    """Jensen-Shannon divergence to base 2, from 0 (alike) to 1 (nothing in common); or the population
    stability index, where 0.1 is commonly called small and 0.25 large."""

    limit: PositiveFloat | None = None
    """Largest that any feature or label may have; by default only those in `features` are looked at."""

    features: dict[str, PositiveFloat | None] = {}
    """Limits of single features or labels in its place; null: this one may drift."""

    @model_validator(mode="after")
    def _limits_something(self) -> DriftConfig:
        if self.limit is None and not any(self.features.values()):
            raise ValueError("give 'limit', for all features, or 'features' with limits of their own")
        return self

    def limit_of(self, name: str) -> float | None:
        """Return the limit of a feature; None where it may drift."""
        return self.features.get(name, self.limit)


class DataGates(Slice):
    """What tonight's examples must be like before anything is trained on them; missing one is exit code 3."""

    min_examples: PositiveInt | None = None
    """Least number of examples, of all splits together."""

    limits: dict[str, FeatureLimits] = {}
    """Feature or label, as the examples name it, to what it must be like."""

    drift: DriftConfig | None = None
    """Compare with the examples of the version that is served now. Nothing is compared on the first night."""

    unchanged: Literal["train", "skip"] = "train"
    """What to do when the examples are those of the version that is served, and so are `data`, `model`,
    `training`, `export`, the Python files below the YAML's folder, packages and files (vocabularies, assets)
    that the YAML names, and the versions of TensorFlow and Slipway: train all the same, or skip the night and
    say so (outcome `skipped`, exit code 0)."""

    missed: Literal["reject", "report"] = "reject"
    """Whether a missed limit ends the run before anything is trained, or is only told in the verdict."""

    def problems(self, stored: FeatureSpecs) -> Iterator[str]:
        """Yield what is wrong with the limits for examples that hold `stored`."""
        for name in (*self.limits, *(self.drift.features if self.drift else ())):
            if name not in stored:
                yield f"gates name {name!r}, which is not one of {', '.join(stored)}"
        for name, limits in self.limits.items():
            if name in stored and (problem := limits.problem_with(stored[name])):
                yield f"gates.limits.{name}: {problem}"
