"""What a version was made of, by its manifest, as `slipway status` prints it.

A version that was put there by hand, or by another release, may say less, or other things.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.markup import escape

_DIGESTS = ("data", "config", "code")
_PACKAGES = ("tensorflow", "slipway")
_METRICS_SHOWN = 4


def lines(number: int, told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield labels and texts, in rich's markup; none for a manifest that says nothing."""
    for label, parts in (
        (f"{number} is of", _origin(told)), ("made of", _ingredients(told)),
        ("its metrics", _metrics(told)), ("its gates", _gates(told)),
    ):  # fmt: skip
        if text := ", ".join(parts):
            yield label, escape(text)


def _origin(told: Mapping[str, Any]) -> Iterator[str]:
    if "run_id" in told:
        yield f"run {told['run_id']}"
    if "created" in told:
        step = f" at step {told['checkpoint_step']}" if "checkpoint_step" in told else ""
        yield f"made {told['created']}{step}"
    if told.get("parent_version"):
        yield f"after version {told['parent_version']}"


def _ingredients(told: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(told.get("examples"), int):
        yield f"{told['examples']:,} examples"
    digests = {name: told.get(f"{name}_sha256") for name in _DIGESTS}
    yield from (f"{name} {str(digest)[:12]}" for name, digest in digests.items() if digest)
    if told.get("git_commit"):
        yield f"commit {str(told['git_commit'])[:12]}{' with changes' if told.get('git_changes') else ''}"
    if "seed" in told:
        yield f"seed {told['seed']}"
    packages = _mapping(told, "packages")
    yield from (f"{name} {packages[name]}" for name in _PACKAGES if packages.get(name))


def _metrics(told: Mapping[str, Any]) -> Iterator[str]:
    measured = {name: value for name, value in _mapping(told, "metrics").items() if name != "global_step"}
    shown = [f"{name} {value:.4g}" for name, value in measured.items() if isinstance(value, int | float)]
    yield from shown[:_METRICS_SHOWN]


def _gates(told: Mapping[str, Any]) -> Iterator[str]:
    """Yield how many checks passed before publishing, and where the verdict is."""
    rows = told.get("checks")
    if isinstance(rows, list) and rows:
        missed = sum(not row.get("passed") for row in rows if isinstance(row, dict))
        yield f"{len(rows) - missed} passed" + (f", {missed} missed and only reported" if missed else "")
    if told.get("verdict"):
        yield f"verdict {told['verdict']}"


def _mapping(told: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = told.get(key)
    return found if isinstance(found, dict) else {}
