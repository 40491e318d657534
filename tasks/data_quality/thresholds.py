"""The gates that metrics must pass, as checks: thresholds, and changes from the served version."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from configs.schema.pipeline import EvaluationConfig, Threshold
from configs.schema.training import Change, Margin, SliceGates
from tasks.core.artifacts import Baseline, Check, Evaluation
from tasks.core.errors import ModelError, Rejected

_NO_WORSE_OFF = "the model is no worse off being served as it was; compare the examples with last night's"


def of_evaluation(evaluated: Evaluation, asked: EvaluationConfig) -> tuple[Check, ...]:
    """Return a check for each bound: of the whole split, then of each slice.

    Raises ModelError for a metric that there is not.
    """
    served = evaluated.baseline
    whole = _Measured("", evaluated.metrics, served.metrics if served else {})
    made = [*check(whole.metrics, asked.thresholds, whole.before), *_changed(whole, asked.changes, "changes")]
    for part in _slices(evaluated, asked.by_slice.min_examples):
        of_part = check(part.metrics, asked.by_slice.thresholds, part.before, part.where)
        made += [*of_part, *_changed(part, asked.by_slice.changes, "by_slice.changes")]
    if asked.changes or asked.by_slice.changes:
        made += _without_baseline(evaluated, asked)
    return tuple(made)


@dataclass(frozen=True)
class _Measured:
    """Metrics of the split, or of a part of it, tonight and before; `where` says which part."""

    where: str
    metrics: Mapping[str, float]
    before: Mapping[str, float]


def _slices(evaluated: Evaluation, least: int) -> Iterator[_Measured]:
    served = evaluated.baseline.slices if evaluated.baseline else ()
    before = {(part.feature, part.value): part.metrics for part in served}
    for part in evaluated.slices:
        if part.examples >= least:
            where = f" where {part.feature} is {part.value}"
            yield _Measured(where, part.metrics, before.get((part.feature, part.value), {}))


def check(
    metrics: Mapping[str, float], thresholds: Mapping[str, Threshold],
    before: Mapping[str, float] | None = None, where: str = "",
) -> tuple[Check, ...]:  # fmt: skip
    """Return a check for each bound; NaN is within none. Raises ModelError for a metric there is not."""
    measured = _Measured(where, metrics, before or {})
    return tuple(made for name, limits in thresholds.items() for made in _checks(name, limits, measured))


def _checks(name: str, limits: Threshold, measured: _Measured) -> Iterator[Check]:
    value, before = _required(name, measured.metrics, "thresholds"), _finite(measured.before.get(name))
    title, observed = f"{name}{measured.where}", _observed(value)
    if limits.min is not None:
        rule = f"{title} >= {limits.min:g}"
        yield Check(title, rule, observed, limits.min, value >= limits.min, before)
    if limits.max is not None:
        rule = f"{title} <= {limits.max:g}"
        yield Check(title, rule, observed, limits.max, value <= limits.max, before)


def _changed(measured: _Measured, changes: Mapping[str, Change], key: str) -> Iterator[Check]:
    """Yield a check for each bound on a metric that was measured of the served version too."""
    for name, change in changes.items():
        value, before = _required(name, measured.metrics, key), _finite(measured.before.get(name))
        title, observed = f"{name}{measured.where}", _observed(value)
        if before is None:
            continue
        if change.max_drop is not None:
            limit, told = before - _size(change.max_drop, before), _told(change.max_drop)
            yield Check(title, f"{title} >= served - {told}", observed, limit, value >= limit, before)
        if change.max_rise is not None:
            limit, told = before + _size(change.max_rise, before), _told(change.max_rise)
            yield Check(title, f"{title} <= served + {told}", observed, limit, value <= limit, before)


def _size(margin: Margin, before: float) -> float:
    return abs(before) * float(margin[:-1]) / 100 if isinstance(margin, str) else float(margin)


def _told(margin: Margin) -> str:
    return margin if isinstance(margin, str) else f"{margin:g}"


def _without_baseline(evaluated: Evaluation, asked: EvaluationConfig) -> Iterator[Check]:
    """Yield a row where something cannot be compared; `no_baseline` says whether it passes."""
    missing = _missing(evaluated.baseline, asked) or _missing_in_a_slice(evaluated, asked.by_slice)
    if missing:
        rule = f"the served version is measured (no_baseline: {asked.no_baseline})"
        yield Check("baseline", rule, missing, None, asked.no_baseline == "accept")


def _missing(served: Baseline | None, asked: EvaluationConfig) -> str:
    if served is None:
        return "nothing is served yet"
    if not served.metrics:
        return f"version {served.version} is {served.note}"
    names = [name for name in asked.changes if _finite(served.metrics.get(name)) is None]
    if names:
        return f"version {served.version} has no {', '.join(names)}"
    by_slice = asked.by_slice.changes and not served.slices
    return f"version {served.version} was not measured by slice" if by_slice else ""


def _missing_in_a_slice(evaluated: Evaluation, asked: SliceGates) -> str:
    served = evaluated.baseline
    missing = [
        f"{name}{part.where}"
        for part in _slices(evaluated, asked.min_examples)
        for name in asked.changes
        if _finite(part.before.get(name)) is None
    ]
    if served is None or not missing:
        return ""
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"version {served.version} has no {missing[0]}{more}"


def _required(name: str, metrics: Mapping[str, float], key: str) -> float:
    if name in metrics:
        return metrics[name]
    near = difflib.get_close_matches(name, metrics, n=1)
    message = f"evaluation.{key} names {name!r}; the Estimator's metrics are {', '.join(sorted(metrics))}"
    raise ModelError(message, f"did you mean {near[0]!r}?" if near else "name one of them")


def _observed(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON has no NaN


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def apply(checks: tuple[Check, ...], evaluation: EvaluationConfig) -> None:
    """Refuse failed checks, unless `evaluation.gate` says that they are only reported."""
    if evaluation.gate == "enforced":
        refuse_failed(checks)


def refuse_failed(checks: tuple[Check, ...], what: str = "evaluation", hint: str = _NO_WORSE_OFF) -> None:
    """Raise Rejected, with every check, where one has failed; `what` was checked."""
    failed = [check for check in checks if not check.passed]
    if failed:
        found = "; ".join(
            f"{check.name} is {_shown(check.observed)}, required: {check.rule}" for check in failed
        )
        raise Rejected(f"{what}: {found}", hint, checks)


def _shown(observed: float | int | str | None) -> str:
    return f"{observed:.4g}" if isinstance(observed, float) else str(observed)
