"""Markdown as both of Prefect's UIs show it."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence

from tasks.core.artifacts import Baseline, Picture, SliceMetrics

_MOST_METRICS = 12
_COUNTS = ("global_step",)


def row(*cells: str) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(map(escaped, cells))} |"


def escaped(cell: str) -> str:
    """Return the text as one cell of a table: on one line, its pipes and backslashes escaped."""
    return " ".join(cell.splitlines()).replace("\\", "\\\\").replace("|", "\\|")


def shown(value: float | str | None) -> str:
    """Return a number with the digits that matter."""
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)


def mark(good: bool) -> str:
    """Return a sign that every font has."""
    return "✓" if good else "✗"


def pictures(drawn: Sequence[Picture]) -> Iterator[str]:
    """Yield the pictures: as data: URIs, the one form that needs no file server and is not removed."""
    for picture in drawn:
        if picture.file.is_file():
            encoded = base64.b64encode(picture.file.read_bytes()).decode()
            yield from ("", f"![{picture.title}](data:image/svg+xml;base64,{encoded})")


def comparison(metrics: dict[str, float], baseline: Baseline | None) -> Iterator[str]:
    """Yield a table of the metrics, beside those of the version that is served."""
    names = [name for name in metrics if name not in _COUNTS]
    if baseline is None or not baseline.metrics:
        yield from ("", "| metric | tonight |", "|---|---:|")
        yield from (row(name, shown(metrics[name])) for name in names)
        if baseline is not None:
            yield from ("", f"Version {baseline.version}, which was served, is {baseline.note}.")
        return
    yield from ("", f"| metric | tonight | version {baseline.version}, served | difference |")
    yield "|---|---:|---:|---:|"
    for name in names:
        before = baseline.metrics.get(name)
        difference = "" if before is None else f"{metrics[name] - before:+.4g}"
        yield row(name, shown(metrics[name]), shown(before), difference)
    yield from ("", f"Version {baseline.version} was {baseline.note}.")


def slices(parts: Sequence[SliceMetrics], whole: dict[str, float]) -> Iterator[str]:
    """Yield a table a feature, a line a value; a loss above the whole split's is what to look at."""
    for feature in dict.fromkeys(part.feature for part in parts):
        names = [name for name in whole if name not in _COUNTS][:_MOST_METRICS]
        yield from ("", f"## By {feature}", "")
        yield row(feature, "examples", *names)
        yield f"|---|---:|{'---:|' * len(names)}"
        for part in parts:
            if part.feature == feature:
                values = (shown(part.metrics.get(name)) for name in names)
                yield row(part.value, f"{part.examples:,}", *values)
