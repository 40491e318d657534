"""The gates that metrics must pass, as checks: thresholds, and changes from the live version."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence

from configs.schema.pipeline import EvaluationConfig, Threshold
from configs.schema.training import Change
from tasks.core.artifacts import Check, Evaluation, SliceMetrics
from tasks.core.errors import ModelError, Rejected

_KEPT = "the previous version keeps serving; compare tonight's examples with last night's"


def of_evaluation(evaluated: Evaluation, gates: EvaluationConfig) -> tuple[Check, ...]:
    """Return a check for each bound: of the whole eval split, then of each slice.

    Raises ModelError for a metric that the model does not report.
    """
    baseline, by_slice = evaluated.baseline, gates.by_slice
    slices = [part for part in evaluated.slices if part.examples >= by_slice.min_examples]
    of_baseline = {(part.feature, part.value): part.metrics for part in baseline.slices} if baseline else {}
    made = [*check(evaluated.metrics, gates.thresholds, gates.changes, baseline.metrics if baseline else {})]
    for part in slices:
        before = of_baseline.get((part.feature, part.value), {})
        made += check(part.metrics, by_slice.thresholds, by_slice.changes, before, _where(part))
    if (gates.changes or by_slice.changes) and (missing := _missing(evaluated, gates, slices, of_baseline)):
        rule = f"the served version is measured (no_baseline: {gates.no_baseline})"
        made.append(Check("baseline", rule, missing, None, gates.no_baseline == "accept"))
    return tuple(made)


def check(
    metrics: Mapping[str, float],
    thresholds: Mapping[str, Threshold],
    changes: Mapping[str, Change] | None = None,
    baseline: Mapping[str, float] | None = None,
    where: str = "",
) -> tuple[Check, ...]:
    """Return a check for each bound of a threshold, and of a change if the baseline has the metric.

    NaN is within no bound. `where` names the slice that was measured. Raises ModelError for a metric that is
    not among `metrics`.
    """
    changes, baseline, made = changes or {}, baseline or {}, []
    for key, gates in (("thresholds", thresholds), ("changes", changes)):
        for name in gates:
            if name not in metrics:
                raise _no_such_metric(f"by_slice.{key}" if where else key, name, metrics)

    def add(name: str, sign: str, shown: str, limit: float) -> None:
        value, title = metrics[name], f"{name}{where}"
        observed = value if math.isfinite(value) else str(value)  # JSON has no NaN
        passed = value >= limit if sign == ">=" else value <= limit
        reference = _finite(baseline.get(name))
        made.append(Check(title, f"{title} {sign} {shown}", observed, limit, passed, reference))

    for name, bounds in thresholds.items():
        if bounds.min is not None:
            add(name, ">=", f"{bounds.min:g}", bounds.min)
        if bounds.max is not None:
            add(name, "<=", f"{bounds.max:g}", bounds.max)
    for name, change in changes.items():
        if (reference := _finite(baseline.get(name))) is None:
            continue
        if (drop := change.max_drop) is not None:
            add(name, ">=", f"served - {_margin(drop)}", reference - _size(drop, reference))
        if (rise := change.max_rise) is not None:
            add(name, "<=", f"served + {_margin(rise)}", reference + _size(rise, reference))
    return tuple(made)


def _margin(margin: str | float) -> str:
    return margin if isinstance(margin, str) else f"{margin:g}"


def _size(margin: str | float, reference: float) -> float:
    """Return a margin, a number or a percentage such as `5%`, in the metric's unit."""
    return abs(reference) * float(margin[:-1]) / 100 if isinstance(margin, str) else float(margin)


def _missing(
    evaluated: Evaluation,
    gates: EvaluationConfig,
    slices: Sequence[SliceMetrics],
    of_baseline: Mapping[tuple[str, str], Mapping[str, float]],
) -> str:
    """Return why a change cannot be checked; empty if every change can."""
    baseline, by_slice = evaluated.baseline, gates.by_slice.changes
    if baseline is None:
        return "nothing is served yet"
    if not baseline.metrics:
        return f"version {baseline.version} is {baseline.note}"
    if names := [name for name in gates.changes if _finite(baseline.metrics.get(name)) is None]:
        return f"version {baseline.version} has no {', '.join(names)}"
    if by_slice and not baseline.slices:
        return f"version {baseline.version} was not measured by slice"
    in_slices = [
        f"{name}{_where(part)}"
        for part in slices
        for name in by_slice
        if _finite(of_baseline.get((part.feature, part.value), {}).get(name)) is None
    ]
    more = f" and {len(in_slices) - 1} more" if len(in_slices) > 1 else ""
    return f"version {baseline.version} has no {in_slices[0]}{more}" if in_slices else ""


def _where(part: SliceMetrics) -> str:
    return f" where {part.feature} is {part.value}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _no_such_metric(key: str, name: str, metrics: Mapping[str, float]) -> ModelError:
    near = difflib.get_close_matches(name, metrics, n=1)
    message = f"evaluation.{key} names {name!r}; the Estimator's metrics are {', '.join(sorted(metrics))}"
    return ModelError(message, f"did you mean {near[0]!r}?" if near else "name one of them")


def apply(checks: tuple[Check, ...], evaluation: EvaluationConfig) -> None:
    """Refuse failed checks, unless `evaluation.gate` only reports them."""
    if evaluation.gate == "enforced":
        refuse_failed(checks)


def refuse_failed(checks: tuple[Check, ...], what: str = "evaluation", hint: str = _KEPT) -> None:
    """Raise Rejected, with every check, if one has failed; `what` was checked."""
    failed = [each for each in checks if not each.passed]
    if failed:
        found = "; ".join(f"{each.name} is {_shown(each.observed)}, required: {each.rule}" for each in failed)
        raise Rejected(f"{what}: {found}", hint, checks)


def _shown(value: float | int | str | None) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
