"""What tonight's examples are like, counted while they are read: see `tasks/data_quality/statistics.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from configs.schema.data_gates import DataGates, FeatureLimits
from configs.schema.features import FeatureSpecs, stored_in_examples
from tasks.core.errors import DataError
from tasks.data_quality.statistics import MOST_VALUES, FeatureStatistics, Point, Statistics
from tasks.examples.example_sources import Batch

_SAMPLED = 50_000
"""Values of a number, drawn at random from all, of which the quantiles are taken."""
_MOST_COUNTED = 100_000
"""Different values that are counted; beyond it the rarer half is forgotten."""


class StatisticsCollector:
    """Counts what there is of each stored feature, in batches of serialized tf.Examples."""

    def __init__(self, specs: FeatureSpecs, gates: DataGates, source: Path) -> None:
        """Read vocabulary files, relative to `source`. Raises DataError for one that cannot be read."""
        stored = stored_in_examples(specs)
        self._parser = {name: tf.io.RaggedFeature(spec.dtype) for name, spec in stored.items()}
        self._features = {
            name: _collecting(name, spec.dtype, gates.limits.get(name, FeatureLimits()), source)
            for name, spec in stored.items()
        }
        self._examples = 0

    def add(self, batch: Batch) -> None:
        """Count serialized tf.Examples that were checked before."""
        self._examples += len(batch.records)
        for name, values in tf.io.parse_example(batch.records, self._parser).items():
            self._features[name].add(values.flat_values.numpy(), values.row_lengths().numpy(), batch)

    def statistics(self) -> Statistics:
        """Return what was counted."""
        found = {name: feature.statistics(self._examples) for name, feature in self._features.items()}
        return Statistics(self._examples, found)


def _collecting(name: str, dtype: str, limits: FeatureLimits, source: Path) -> _Numbers | _Words:
    known = _vocabulary(name, dtype, limits, source)
    return _Words(known) if dtype == "string" else _Numbers(dtype, limits, known)


def _vocabulary(name: str, dtype: str, limits: FeatureLimits, source: Path) -> frozenset[Any] | None:
    if not limits.has_vocabulary:
        return None
    words: Sequence[Any] = limits.vocabulary or ()
    if limits.vocabulary_file is not None:
        words = _words(source / limits.vocabulary_file, f"data.gates.limits.{name}.vocabulary_file")
    try:
        return frozenset(str(word).encode() if dtype == "string" else int(word) for word in words)
    except ValueError as error:
        raise DataError(f"data.gates.limits.{name}.vocabulary_file: {error}", "an integer a line") from None


def _words(file: Path, key: str) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{key}: {file}: {error}", "a word a line, UTF-8, relative to the YAML") from None


class _Counted:
    """How often each value occurred, as long as there are not too many."""

    def __init__(self, known: frozenset[Any] | None) -> None:
        self.unknown = 0
        self._known = known
        self._counts: Counter[Any] = Counter()
        self._all = True

    def add(self, counts: Mapping[Any, int]) -> None:
        self._counts.update(counts)
        if self._known is not None:
            self.unknown += sum(count for value, count in counts.items() if value not in self._known)
        if len(self._counts) > _MOST_COUNTED:
            self._counts = Counter(dict(self._counts.most_common(_MOST_COUNTED // 2)))
            self._all = False

    def commonest(self) -> dict[str, int]:
        ranked = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return {_shown(value): count for value, count in ranked[:MOST_VALUES]}

    def absent(self) -> str | None:
        if self._known is None or not self._all:
            return None
        missing = min(self._known - self._counts.keys(), default=None)
        return None if missing is None else _shown(missing)

    def distinct(self) -> int | None:
        return len(self._counts) if self._all else None


def _shown(value: Any) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


class _Words:
    """A string feature."""

    def __init__(self, known: frozenset[bytes] | None) -> None:
        self._counted = _Counted(known)
        self._present = self._values = 0

    def add(self, values: NDArray[Any], lengths: NDArray[np.int64], _batch: Batch) -> None:
        self._present += int(np.count_nonzero(lengths))
        self._values += values.size
        self._counted.add(Counter(values.tolist()))

    def statistics(self, examples: int) -> FeatureStatistics:
        return FeatureStatistics(
            "string", examples, examples - self._present, self._values, unknown=self._counted.unknown,
            absent=self._counted.absent(), distinct=self._counted.distinct(),
            commonest=self._counted.commonest(),
        )  # fmt: skip


class _Numbers:
    """A float32 or an int64 feature; integers are counted by value too."""

    def __init__(self, dtype: str, limits: FeatureLimits, known: frozenset[int] | None) -> None:
        self._dtype, self._limits = dtype, limits
        self._counted = _Counted(known) if dtype == "int64" else None
        self._present = self._values = self._finite = self._outside = 0
        self._sum, self._least, self._largest = 0.0, np.inf, -np.inf
        self._least_in: str | None = None
        self._largest_in: str | None = None
        self._not_finite, self._first_not_finite = 0, ""
        self._sample = _Sample()

    def add(self, values: NDArray[Any], lengths: NDArray[np.int64], batch: Batch) -> None:
        self._present += int(np.count_nonzero(lengths))
        self._values += values.size
        rows = np.repeat(np.arange(len(lengths)), lengths)
        if self._counted is None and not (finite := np.isfinite(values)).all():
            bad = np.unique(rows[~finite])
            self._not_finite += len(bad)
            self._first_not_finite = self._first_not_finite or batch.place(int(bad[0]))
            self._present -= len(bad)
            self._outside += int((~finite).sum()) if self._limits.has_range else 0
            values, rows = values[finite], rows[finite]
        if not values.size:
            return
        self._finite += values.size
        self._sum += float(values.sum(dtype=np.float64))
        self._note_extremes(values, rows, batch)
        self._outside += self._beyond(values)
        self._sample.add(values)
        if self._counted is not None:
            found, counts = np.unique(values, return_counts=True)
            self._counted.add(dict(zip(found.tolist(), counts.tolist(), strict=True)))

    def _note_extremes(self, values: NDArray[Any], rows: NDArray[np.int64], batch: Batch) -> None:
        least, largest = int(values.argmin()), int(values.argmax())
        if values[least].item() < self._least:
            self._least, self._least_in = values[least].item(), batch.place(int(rows[least]))
        if values[largest].item() > self._largest:
            self._largest, self._largest_in = values[largest].item(), batch.place(int(rows[largest]))

    def _beyond(self, values: NDArray[Any]) -> int:
        """Count values outside the limits, which are rounded as the values are: 0.1 is within `max: 0.1`."""
        rounded = np.float32 if self._dtype == "float32" else np.float64
        low, high = self._limits.min, self._limits.max
        below = 0 if low is None else int((values < rounded(low)).sum())
        return below + (0 if high is None else int((values > rounded(high)).sum()))

    def statistics(self, examples: int) -> FeatureStatistics:
        counted, some = self._counted, self._finite > 0
        return FeatureStatistics(
            self._dtype, examples, examples - self._present, self._values,
            least=float(self._least) if some else None, largest=float(self._largest) if some else None,
            mean=self._sum / self._finite if some else None, least_in=self._least_in,
            largest_in=self._largest_in, not_finite=self._not_finite,
            first_not_finite=self._first_not_finite or None, outside=self._outside,
            unknown=counted.unknown if counted else 0,
            absent=counted.absent() if counted else None,
            distinct=counted.distinct() if counted else None,
            commonest=counted.commonest() if counted else {}, points=self._sample.points(),
        )  # fmt: skip


class _Sample:
    """A uniform sample of all values: each draws a random number, and those with the least stay.

    The numbers are seeded: the same examples in the same order give the same sample.
    """

    def __init__(self) -> None:
        self._random = np.random.default_rng(1)
        self._drawn, self._values = np.empty(0), np.empty(0)
        self._most = np.inf

    def add(self, values: NDArray[Any]) -> None:
        drawn = self._random.random(values.size)
        chosen = drawn < self._most
        self._drawn = np.concatenate([self._drawn, drawn[chosen]])
        self._values = np.concatenate([self._values, values[chosen].astype(np.float64)])
        if self._drawn.size > 2 * _SAMPLED:
            self._thin_out()

    def _thin_out(self) -> None:
        least = np.argpartition(self._drawn, _SAMPLED)[:_SAMPLED]
        self._drawn, self._values = self._drawn[least], self._values[least]
        self._most = self._drawn.max()

    def points(self) -> tuple[Point, ...]:
        """Return every value, or so many at even ranks, with the share of values below and up to it."""
        if self._drawn.size > _SAMPLED:
            self._thin_out()
        ordered = np.sort(self._values)
        chosen = np.unique(ordered)
        if chosen.size > MOST_VALUES:
            ranks = np.linspace(0, ordered.size - 1, MOST_VALUES).astype(int)
            chosen = np.unique(ordered[ranks])
        below = np.searchsorted(ordered, chosen, side="left") / max(1, ordered.size)
        up_to = np.searchsorted(ordered, chosen, side="right") / max(1, ordered.size)
        return tuple(
            Point(*numbers) for numbers in zip(chosen.tolist(), below.tolist(), up_to.tolist(), strict=True)
        )
