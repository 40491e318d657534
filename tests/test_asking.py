"""What `slipway ask` prints of an answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tasks.in_tensorflow.probe import _shown
from tasks.servers.serving_client import Answer

WORDS = np.array([b"Rome", b"Bern \xff"], dtype=object)


@pytest.mark.parametrize(
    ("outputs", "line"),
    [
        ({"x": np.float32([[1, 2], [3, 4]])}, "Predict example 1: x [3.0, 4.0]"),
        ({"word": WORDS}, r"Predict example 1: word Bern \xff"),
        ({"words": np.array([[b"a"], [b"b"]], dtype=object)}, "Predict example 1: words ['b']"),
        ({"version": np.array(b"v1", dtype=object)}, "Predict example 1: version v1"),
        ({"names": np.array([b"a", b"b", b"c"], dtype=object)}, "Predict example 1: names ['a', 'b', 'c']"),
        ({"b": np.int64([1, 2]), "a": np.bool_([True, False])}, "Predict example 1: a False, b 2"),
    ],
    ids=["floats", "bytes", "lists of bytes", "scalar", "constant", "two outputs"],
)
def test_an_output_of_any_type_and_shape(outputs: dict[str, Any], line: str) -> None:
    """Strings are text; an output without a row for each example is shown whole."""
    assert _shown("Predict", Answer(outputs, 1, 0.0), 1, 2) == line


@pytest.mark.parametrize(
    ("labels", "scores", "line"),
    [
        ([b"no", b"yes"], [0.25, 0.75], "yes (score 0.7500)"),
        ([b"", b""], [0.25, 0.75], "1 (score 0.7500)"),
        ([b"yes"], [0.0], "yes"),
    ],
    ids=["both", "no classes", "no scores"],
)
def test_a_head_may_export_scores_or_classes_alone(
    labels: list[bytes], scores: list[float], line: str
) -> None:
    """Classify then answers empty labels, or scores of 0."""
    outputs = {"classes": np.array([labels], dtype=object), "scores": np.float32([scores])}
    assert _shown("Classify", Answer(outputs, 1, 0.0), 0, 1) == f"Classify example 0: {line}"
