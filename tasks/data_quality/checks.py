"""The gates of `data.gates` as checks: a row for each limit that is set. Plain Python."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from configs.schema.data_gates import DataGates, DriftConfig, FeatureLimits
from tasks.core.artifacts import Check
from tasks.data_quality import drift
from tasks.data_quality.statistics import FeatureStatistics, Statistics


@dataclass(frozen=True)
class Before:
    """What the version that is served now was made of."""

    version: int
    statistics: Statistics | None
    """None where the version does not say: it was put there by hand, or by another release."""

    def feature(self, name: str) -> FeatureStatistics | None:
        """Return what a feature was like then; None where that is not known."""
        return self.statistics.features.get(name) if self.statistics else None


def check(tonight: Statistics, gates: DataGates, before: Before | None) -> tuple[Check, ...]:
    """Return a check for each limit; `before` is None where nothing is served yet."""
    return (*_of_examples(tonight, gates, before), *_of_features(tonight, gates, before),
            *_of_drift(tonight, gates.drift, before))  # fmt: skip


def _of_examples(tonight: Statistics, gates: DataGates, before: Before | None) -> Iterator[Check]:
    least = gates.min_examples
    if least is not None:
        then = before.statistics.examples if before and before.statistics else None
        enough = tonight.examples >= least
        yield Check("data.examples", f"examples >= {least}", tonight.examples, least, enough, then)


def _of_features(tonight: Statistics, gates: DataGates, before: Before | None) -> Iterator[Check]:
    for name, limits in gates.limits.items():
        then = before.feature(name) if before else None
        yield from _of_feature(f"data.{name}", tonight.features[name], limits, then)


def _of_feature(
    key: str, now: FeatureStatistics, limits: FeatureLimits, then: FeatureStatistics | None
) -> Iterator[Check]:
    if limits.required:
        some = now.examples - now.missing
        had = then.examples - then.missing if then else None
        yield Check(f"{key}.required", "examples that have it >= 1", some, 1, some >= 1, had)
    if (most := limits.max_missing) is not None:
        yield _at_most(f"{key}.missing", "share of examples without it", now.missing_share, most,
                       then.missing_share if then else None)  # fmt: skip
    if limits.has_range:
        yield _at_most(f"{key}.range", _range(now, limits), now.share(now.outside), limits.max_outside,
                       _seen(then))  # fmt: skip
    if limits.has_vocabulary:
        rule = "share of values that are not in the vocabulary"
        yield _at_most(f"{key}.vocabulary", rule, now.share(now.unknown), limits.max_unknown)
    yield from _of_balance(key, now, limits, then)


def _seen(then: FeatureStatistics | None) -> str | None:
    """Return the range of before: how many lay outside was counted by the limits of then."""
    if then is None or then.least is None or then.largest is None:
        return None
    return f"{then.least:g} to {then.largest:g}"


def _range(now: FeatureStatistics, limits: FeatureLimits) -> str:
    low = "-inf" if limits.min is None else f"{limits.min:g}"
    high = "inf" if limits.max is None else f"{limits.max:g}"
    seen = "" if now.least is None else f" (they go from {now.least:g} to {now.largest:g})"
    return f"share of values outside {low} to {high}{seen}"


def _of_balance(
    key: str, now: FeatureStatistics, limits: FeatureLimits, then: FeatureStatistics | None
) -> Iterator[Check]:
    words = [*map(str, limits.vocabulary or ()), *([] if now.absent is None else [now.absent])]
    counts = {**dict.fromkeys(words, 0), **now.commonest} or {"(none)": 0}
    if limits.min_share is not None:
        rarest = min(counts, key=lambda value: counts[value])
        share, had = now.share(counts[rarest]), _share_of(then, rarest)
        rule = f"share of the rarest value, {rarest!r} >= {limits.min_share:g}"
        yield Check(f"{key}.rarest", rule, share, limits.min_share, share >= limits.min_share, had)
    if limits.max_share is not None:
        commonest = max(counts, key=lambda value: counts[value])
        rule = f"share of the commonest value, {commonest!r}"
        share, had = now.share(counts[commonest]), _share_of(then, commonest)
        yield _at_most(f"{key}.commonest", rule, share, limits.max_share, had)


def _share_of(then: FeatureStatistics | None, value: str) -> float | None:
    return then.share(then.commonest.get(value, 0)) if then else None


def _of_drift(tonight: Statistics, asked: DriftConfig | None, before: Before | None) -> Iterator[Check]:
    if asked is None:
        return
    if before is None or before.statistics is None:
        found = "no version is served" if before is None else f"version {before.version} does not say"
        yield Check("data.drift", "from the examples of the version served", found, None, True)
        return
    for name, now in tonight.features.items():
        limit = asked.limit_of(name)
        if limit is not None:
            yield _drifted(name, now, before, asked, limit)


def _drifted(name: str, now: FeatureStatistics, before: Before, asked: DriftConfig, limit: float) -> Check:
    rule, served = f"{drift.NAMES[asked.measure]} <= {limit:g}", f"version {before.version}"
    then = before.feature(name)
    if then is None or then.dtype != now.dtype:
        found = "a new feature" if then is None else f"{now.dtype}, which was {then.dtype}"
        return Check(f"data.{name}.drift", rule, found, limit, True, served)
    far = drift.distance(then, now, asked.measure)
    return Check(f"data.{name}.drift", rule, far, limit, far <= limit, served)


def _at_most(
    name: str, rule: str, observed: float, limit: float, baseline: float | str | None = None
) -> Check:
    passed = math.isfinite(observed) and observed <= limit
    return Check(name, f"{rule} <= {limit:g}", observed, limit, passed, baseline)
