"""One signature of a loaded SavedModel, asked in batches, each answer compared with the offline one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tasks import comparison
from tasks.saved_models import form, is_batched

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Outcome:
    """What asking one signature in one batch size gave."""

    problem: str
    """The first thing that is wrong: output, example, expected and found; empty where nothing is."""
    largest_ulps: int
    numbers: int
    """How many output values were compared."""


class SignatureRun:
    """A signature that can be asked again and again, of the same examples."""

    def __init__(self, session: Any, name: str, definition: Any, inputs: Arrays) -> None:
        """`definition` is the SignatureDef in the session's graph; `inputs` holds every example by alias."""
        self.name, self._outputs, self._inputs = name, dict(sorted(definition.outputs.items())), inputs
        self.examples = len(next(iter(inputs.values())))
        self._ask = session.make_callable(
            {alias: info.name for alias, info in self._outputs.items()},
            feed_list=[definition.inputs[alias].name for alias in inputs],
        )

    def compare(self, expected: Arrays, batch_size: int, most_ulps: int) -> Outcome:
        """Ask for all examples, `batch_size` at once, and compare with `expected`, by alias."""
        problem, largest, numbers = "", 0, 0
        for first in range(0, self.examples, batch_size):
            last = min(first + batch_size, self.examples)
            answers = self._ask(*(array[first:last] for array in self._inputs.values()))
            for alias, info in self._outputs.items():
                wanted = expected[alias][first:last] if is_batched(info) else expected[alias]
                compared = _compared(info, wanted, np.asarray(answers[alias]), most_ulps)
                largest, numbers = max(largest, compared.largest_ulps), numbers + compared.numbers
                if compared.difference and not problem:
                    problem = self._located(alias, first, compared)
        return Outcome(problem, largest, numbers)

    def _located(self, alias: str, first: int, compared: comparison.Comparison) -> str:
        place = f"signature {self.name!r}, output {alias!r}"
        example = "" if compared.example is None else f", sample example {first + compared.example}"
        return f"{place}{example}: {compared.difference}"


def _compared(
    info: Any, expected: NDArray[Any], observed: NDArray[Any], most_ulps: int
) -> comparison.Comparison:
    if problem := _unlike_stated(info, observed):
        return comparison.Comparison(0, comparison.WORLDS_APART, problem)
    return _not_finite(observed) or comparison.compare(expected, observed, most_ulps)


def _unlike_stated(info: Any, observed: NDArray[Any]) -> str:
    """Return how dtype and shape differ from what the SignatureDef states; empty where they do not."""
    dtype, shape = tf.as_dtype(info.dtype), tf.TensorShape(info.tensor_shape)
    # A string tensor comes out of a session as an array of dtype object.
    same_dtype = observed.dtype.kind in "OS" if dtype == tf.string else observed.dtype == dtype.as_numpy_dtype
    if same_dtype and shape.is_compatible_with(observed.shape):
        return ""
    return f"the signature states {form(info)}, found {observed.dtype.name}{list(observed.shape)}"


def _not_finite(observed: NDArray[Any]) -> comparison.Comparison | None:
    if observed.dtype.kind not in "fc" or np.isfinite(observed).all():
        return None
    index = [int(i) for i in np.argwhere(~np.isfinite(observed))[0]]
    problem = f"{index}: expected a finite number, found {observed[tuple(index)]}"
    return comparison.Comparison(0, comparison.WORLDS_APART, problem, index[0] if index else None)
