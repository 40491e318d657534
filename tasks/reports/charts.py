"""Pictures of a run, as SVG files. Only programs in a process of their own import this: matplotlib is slow.

Both of Prefect's UIs show an SVG as a data: URI in markdown; inline <svg> they remove. The background is
white, as the UI may be dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

Points = Sequence[tuple[float, float]]

MOST_CLASSES = 20
_MOST_POINTS = 1000
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, and sharp at every size
    "svg.hashsalt": "slipway",  # the same picture has the same bytes
    "font.family": "sans-serif", "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6",
    "axes.axisbelow": True, "axes.edgecolor": "#888888", "figure.facecolor": "white",
}  # fmt: skip
_BLUE, _ORANGE, _GRAY = "#1f6feb", "#d9730d", "#888888"
_MUCH = 0.55  # of the darkest cell: from there on its number is white


def curves(file: Path, title: str, trained: Points, evaluated: Points = ()) -> None:
    """Draw a quantity by global step: of training as a line, of evaluations as dots."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7, 3.2), layout="constrained")
        axes = figure.subplots()
        if trained:
            axes.plot(*zip(*_thinned(trained), strict=True), color=_BLUE, linewidth=1.6, label="training")
        if evaluated:
            line = "-" if len(evaluated) > 1 else ""
            axes.plot(
                *zip(*evaluated, strict=True), "o" + line, color=_ORANGE, markersize=5, label="held-out"
            )
        axes.set(title=title, xlabel="global step")
        if _spans_decades([value for _, value in (*trained, *evaluated)]):
            axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
        _save(figure, file)


def confusion(file: Path, title: str, expected: NDArray[Any], predicted: NDArray[Any]) -> None:
    """Draw how often each class was taken for which; rarer classes than MOST_CLASSES are left out."""
    classes, counts = np.unique(np.concatenate([expected, predicted]), return_counts=True)
    shown = np.sort(classes[np.argsort(-counts, kind="stable")[:MOST_CLASSES]])
    table = np.array(
        [[np.sum((expected == row) & (predicted == column)) for column in shown] for row in shown]
    )
    with mpl.rc_context(_STYLE | {"axes.grid": False}):
        size = 2.2 + 0.42 * len(shown)
        figure = Figure(figsize=(size, size), layout="constrained")
        axes = figure.subplots()
        shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.argwhere(table > 0):
            color = "white" if shares[row, column] > _MUCH else "black"
            axes.text(column, row, str(table[row, column]), ha="center", va="center", color=color, fontsize=9)
        names = [_name(value) for value in shown]
        axes.set(title=title, xlabel="predicted", ylabel="labelled")
        axes.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 4 else 60)  # noqa: PLR2004
        axes.set_yticks(range(len(names)), names)
        _save(figure, file)


def residuals(file: Path, title: str, expected: NDArray[Any], predicted: NDArray[Any]) -> None:
    """Draw the error (predicted minus labelled) beside the label, and how often it is how large."""
    errors = predicted - expected
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
        step = max(1, len(errors) // _MOST_POINTS)
        left.scatter(expected[::step], errors[::step], s=12, color=_BLUE, alpha=0.5, linewidths=0)
        right.hist(errors, bins=30, orientation="horizontal", color=_BLUE)
        for axes in (left, right):
            axes.axhline(0, color=_GRAY, linewidth=1)
        left.set(title=title, xlabel="labelled", ylabel="predicted − labelled")
        right.set(xlabel="examples")
        _save(figure, file)


def latencies(file: Path, title: str, milliseconds: Sequence[float], marks: Mapping[str, float]) -> None:
    """Draw how many requests took how long; `marks` are named values, such as p50 and a limit.

    A few outliers do not squeeze the rest: they are counted at the right end.
    """
    end = 1.5 * max(marks.values())
    beyond = sum(each > end for each in milliseconds)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7, 2.8), layout="constrained")
        axes = figure.subplots()
        axes.hist([each for each in milliseconds if each <= end], bins=40, range=(0, end), color=_BLUE)
        for index, (name, value) in enumerate(marks.items()):
            axes.axvline(value, color=_ORANGE, linewidth=1.2)
            place = (value, 0.97 - 0.13 * index)
            axes.annotate(
                f" {name} {value:.3g} ms", place, xycoords=("data", "axes fraction"), va="top",
                bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1},
            )  # fmt: skip
        if beyond:
            axes.annotate(
                f"{beyond} slower, up to {max(milliseconds):.3g} ms →", (1, 0.05), xycoords="axes fraction",
                ha="right", color=_GRAY,
            )  # fmt: skip
        axes.set(title=title, xlabel="milliseconds", ylabel="requests")
        _save(figure, file)


def _spans_decades(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > 20  # noqa: PLR2004 (a linear axis hides the rest)


def _save(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="svg", metadata={"Date": None})


def _thinned(points: Points) -> Points:
    """Return at most some _MOST_POINTS of them, evenly spread, the last among them."""
    step = -(-len(points) // _MOST_POINTS)
    return [*points[:-1:step], points[-1]]


def _name(value: Any) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= 12 else f"{text[:11]}…"  # noqa: PLR2004
