"""Loss and metrics by global step, from the event files in a model_dir."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

Curves = dict[str, list[tuple[int, float]]]
"""Name to (global step, value), in rising order."""


def read(folder: Path) -> Curves:
    """Return the scalars of the event files directly in `folder`; of a step told twice, the last."""
    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        try:
            for event in tf.compat.v1.train.summary_iterator(str(file)):
                for value in event.summary.value:
                    if value.HasField("simple_value"):
                        found.setdefault(value.tag, {})[event.step] = value.simple_value
        except tf.errors.DataLossError:
            continue  # its writer was killed: what comes before the torn record has been read
    return {tag: sorted(points.items()) for tag, points in found.items()}


def to_the_end(curves: Curves, step: int, loss: float | None) -> Curves:
    """Return the curves of training with the loss of its last step, which no summary may be of."""
    points = curves.get("loss", [])
    if loss is None or not points or points[-1][0] >= step:
        return curves
    return {**curves, "loss": [*points, (step, loss)]}
