"""What a sample of a user's data holds: one profile a feature, from which `guesses.py` makes a pipeline."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Dtype = Literal["float32", "int64", "string"]
Format = Literal["tfrecord", "csv", "parquet"]
Value = int | float | str

MOST_EXAMPLES = 100_000
"""Examples that are read of a sample: enough to guess from, and soon read."""

MOST_WORDS = 1_000
"""Distinct values that are listed; a feature that has more has no vocabulary."""

MOST_PAIRED = 5_000
"""Examples whose values are kept, to see which features predict the label."""

_MOST_DISTINCT = 200_000


@dataclass(frozen=True)
class FeatureProfile:
    """What the values of one feature have in common."""

    name: str
    dtype: Dtype
    present: int
    """Examples that have at least one value of it."""
    shortest: int
    longest: int
    """Fewest and most values that such an example has."""
    words: tuple[tuple[Value, int], ...] | None
    """Each distinct value and how often it occurs, the commonest first; None beyond MOST_WORDS."""
    distinct: int | None
    """How many distinct values there are; None where they are too many to count."""
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    std: float = 0.0
    """Of the finite numbers."""
    not_finite: int = 0
    """Values that are NaN or infinite."""
    binary: bool = False
    """Whether a string is not text: an encoded image, a serialized proto."""
    first_missing: str = ""
    """Where the first example is that lacks it."""
    note: str = ""
    """What the reader saw that bears on its type."""

    @property
    def is_scalar(self) -> bool:
        """Whether every example that has it has one value."""
        return self.shortest == self.longest == 1

    @property
    def is_fixed(self) -> bool:
        """Whether all examples that have it have the same number of values."""
        return self.shortest == self.longest

    @property
    def values(self) -> tuple[Value, ...]:
        """The distinct values, sorted; none where there are too many."""
        return tuple(sorted(value for value, _ in self.words or ()))


@dataclass(frozen=True)
class Sample:
    """A sample of a user's data."""

    files: tuple[Path, ...]
    format: Format
    compression: Literal["none", "gzip"]
    examples: int
    whole: bool
    """Whether the files were read to their end, not only MOST_EXAMPLES of them."""
    features: tuple[FeatureProfile, ...]
    columns: dict[str, tuple[Value | None, ...]] = field(default_factory=dict)
    """The values of the first MOST_PAIRED examples, by feature; None for an example with none, or several."""
    delimiter: str = ","
    encoding: str = "utf-8"
    """Of CSV files."""


class Tally:
    """Takes the values of one feature, example by example, and sums them up."""

    def __init__(self, name: str, dtype: Dtype, note: str = "") -> None:
        self.name, self.dtype, self._note = name, dtype, note
        self.present, self._shortest, self._longest = 0, 0, 0
        self._words: Counter[Value] | None = Counter()
        self._numbers = _Moments()
        self._binary = False
        self._first: dict[int, Value] = {}

    def add(self, values: Sequence[Value | bytes], index: int | None = None) -> None:
        """Add the values of one example (at least one); `index` is the example's number."""
        if index is not None and index < MOST_PAIRED and len(values) == 1:
            value = values[0]
            value = self._text(value) if isinstance(value, bytes) else value
            if not isinstance(value, float) or math.isfinite(value):
                self._first[index] = value
        self._shortest = min(self._shortest, len(values)) if self.present else len(values)
        self._longest = max(self._longest, len(values))
        self.present += 1
        self._count([self._text(value) if isinstance(value, bytes) else value for value in values])

    def _text(self, value: bytes) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError:
            self._binary = True
            return ""

    def _count(self, values: Sequence[Value]) -> None:
        if self._words is not None:
            self._words.update(values)
            if len(self._words) > _MOST_DISTINCT:
                self._words = None
        if self.dtype != "string":
            self._numbers.add([float(value) for value in values])

    def column(self, examples: int) -> tuple[Value | None, ...]:
        """Return the values of the first examples."""
        return tuple(map(self._first.get, range(min(examples, MOST_PAIRED))))

    def profile(self, first_missing: str = "") -> FeatureProfile:
        """Return the sum."""
        distinct = None if self._words is None or self._binary else len(self._words)
        listed = self._words is not None and distinct is not None and distinct <= MOST_WORDS
        words = tuple(self._words.most_common()) if self._words is not None and listed else None
        numbers = self._numbers
        return FeatureProfile(
            self.name, self.dtype, self.present, self._shortest, self._longest, words, distinct,
            numbers.low, numbers.high, numbers.mean, numbers.std, numbers.not_finite,
            self._binary, first_missing, self._note,
        )  # fmt: skip


class _Moments:
    """Range, mean and standard deviation of the finite numbers among those that are added."""

    def __init__(self) -> None:
        self.low, self.high, self.not_finite = 0.0, 0.0, 0
        self._count, self._shift, self._sum, self._squares = 0, 0.0, 0.0, 0.0

    def add(self, values: Sequence[float]) -> None:
        finite = [value for value in values if math.isfinite(value)]
        self.not_finite += len(values) - len(finite)
        if not finite:
            return
        if not self._count:
            # Summed as distances from the first: large numbers that lie close together keep their digits.
            self._shift = self.low = self.high = finite[0]
        self.low, self.high = min(self.low, *finite), max(self.high, *finite)
        self._count += len(finite)
        self._sum += sum(value - self._shift for value in finite)
        self._squares += sum((value - self._shift) ** 2 for value in finite)

    @property
    def mean(self) -> float:
        return self._shift + self._sum / self._count if self._count else 0.0

    @property
    def std(self) -> float:
        if not self._count:
            return 0.0
        return math.sqrt(max(0.0, self._squares / self._count - (self._sum / self._count) ** 2))
