"""What a night's examples were like, feature by feature: a JSON file, in the run and with the version.

Counts are exact. Quantiles are of a sample, taken by `tasks/examples/statistics_collector.py`. Values of
strings and integers are in it: it is for its owner's eyes, as the examples are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

NAME = "statistics.json"
MOST_VALUES = 256
"""How many values, and how many points of a distribution, are kept of a feature."""


@dataclass(frozen=True)
class Point:
    """A value, and which share of all values is less than it, and at most it."""

    value: float
    below: float
    up_to: float


@dataclass(frozen=True)
class FeatureStatistics:
    """What one feature of the tf.Examples was like."""

    dtype: str
    examples: int
    missing: int
    """Examples without a value of it, or with one that is no finite number."""
    values: int
    least: float | None = None
    """Of the finite numbers, as all that follows."""
    largest: float | None = None
    mean: float | None = None
    least_in: str | None = None
    """The example with the least number: file, and record or line."""
    largest_in: str | None = None
    not_finite: int = 0
    """Examples with a float that is NaN or infinite."""
    first_not_finite: str | None = None
    """The first of them."""
    outside: int = 0
    """Values outside the limits that were set when they were counted, NaN and infinite ones among them."""
    unknown: int = 0
    """Values that were not in the vocabulary set then."""
    absent: str | None = None
    """A value of that vocabulary that did not occur; None where all did, or too many were counted to tell."""
    distinct: int | None = None
    """How many different values an int64 or a string had; None of floats, and where there were too many."""
    commonest: dict[str, int] = field(default_factory=dict)
    """How often each of the MOST_VALUES commonest occurred, of int64 and string."""
    points: tuple[Point, ...] = ()
    """The distribution of a number, rising: every value where there are at most MOST_VALUES."""

    @property
    def missing_share(self) -> float:
        """Share of the examples without it."""
        return self.missing / self.examples if self.examples else 0.0

    def share(self, count: int) -> float:
        """Return which share of all values `count` of them are."""
        return count / self.values if self.values else float(count > 0)


@dataclass(frozen=True)
class Statistics:
    """What a night's examples were like."""

    examples: int
    features: dict[str, FeatureStatistics]
    """Features and labels, as the examples name them."""


def in_examples(run_folder: Path) -> Path:
    """Return where ingest leaves it."""
    return run_folder / "examples" / NAME


def write(file: Path, statistics: Statistics) -> None:
    """Write it as JSON."""
    file.write_bytes(to_json(statistics, inf_nan_mode="constants"))


def read(file: Path) -> Statistics | None:
    """Return it; None where there is none, or another release wrote it otherwise."""
    try:
        return TypeAdapter(Statistics).validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
