"""The gate that metrics must pass: thresholds as checks. Plain Python."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping

from configs.schema import Threshold
from tasks.artifacts import Check
from tasks.errors import ModelError, Rejected


def check(metrics: Mapping[str, float], thresholds: Mapping[str, Threshold]) -> tuple[Check, ...]:
    """Return a check for each bound; NaN is within none. Raises ModelError for a metric there is not."""
    return tuple(made for name, limits in thresholds.items() for made in _checks(name, limits, metrics))


def _checks(name: str, limits: Threshold, metrics: Mapping[str, float]) -> Iterator[Check]:
    if name not in metrics:
        near = difflib.get_close_matches(name, metrics, n=1)
        message = (
            f"evaluation.thresholds names {name!r}; the Estimator's metrics are {', '.join(sorted(metrics))}"
        )
        raise ModelError(message, f"did you mean {near[0]!r}?" if near else "name one of them")
    value = metrics[name]
    observed: float | str = value if math.isfinite(value) else str(value)  # JSON has no NaN
    if limits.min is not None:
        yield Check(name, f"{name} >= {limits.min:g}", observed, limits.min, value >= limits.min)
    if limits.max is not None:
        yield Check(name, f"{name} <= {limits.max:g}", observed, limits.max, value <= limits.max)


def refuse_failed(checks: tuple[Check, ...]) -> None:
    """Raise Rejected, with every check, where one has failed."""
    failed = [check for check in checks if not check.passed]
    if failed:
        found = "; ".join(
            f"{check.name} is {_shown(check.observed)}, required: {check.rule}" for check in failed
        )
        hint = "the model is no worse off being served as it was; compare the examples with last night's"
        raise Rejected(f"evaluation: {found}", hint, checks)


def _shown(observed: float | int | str | None) -> str:
    return f"{observed:.4g}" if isinstance(observed, float) else str(observed)
