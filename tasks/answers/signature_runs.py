"""One signature of a loaded SavedModel, asked in batches, each answer compared with the offline one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tasks.answers import comparison
from tasks.answers.comparison import Limit, Tally
from tasks.exports.saved_models import form, is_batched

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Outcome:
    """What asking one signature in one batch size gave."""

    tally: Tally
    """How far the answers lie from the expected ones."""
    answers: Arrays
    """Every example's answers by output alias; {} where it could not be asked."""


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

    def compare(self, expected: Arrays, batch_size: int, most: Limit) -> Outcome:
        """Ask for all examples, `batch_size` at once, and compare with `expected`, by alias."""
        tally = Tally(most)
        parts: dict[str, list[NDArray[Any]]] = {alias: [] for alias in self._outputs}
        for first in range(0, self.examples, batch_size):
            last = min(first + batch_size, self.examples)
            answers = self._ask(*(array[first:last] for array in self._inputs.values()))
            for alias, info in self._outputs.items():
                wanted = expected[alias][first:last] if is_batched(info) else expected[alias]
                observed = np.asarray(answers[alias])
                place = f"signature {self.name!r}, output {alias!r}"
                tally.take(_compared(info, wanted, observed, most), place, first)
                parts[alias].append(observed)
        return Outcome(tally, {alias: self._whole(alias, parts[alias]) for alias in parts})

    def answers(self) -> Arrays:
        """Ask for all examples at once, and return the answers by output alias."""
        answers = self._ask(*self._inputs.values())
        return {alias: np.asarray(answers[alias]) for alias in self._outputs}

    def _whole(self, alias: str, parts: list[NDArray[Any]]) -> NDArray[Any]:
        batched = is_batched(self._outputs[alias]) and all(part.ndim for part in parts)
        return np.concatenate(parts) if batched else parts[0]


def _compared(
    info: Any, expected: NDArray[Any], observed: NDArray[Any], most: Limit
) -> comparison.Comparison:
    if problem := _unlike_stated(info, observed):
        return comparison.Comparison(0, comparison.WORLDS_APART, problem)
    return comparison.not_finite(observed) or comparison.compare(expected, observed, most)


def _unlike_stated(info: Any, observed: NDArray[Any]) -> str:
    """Return how dtype and shape differ from what the SignatureDef states; empty where they do not."""
    dtype, shape = tf.as_dtype(info.dtype), tf.TensorShape(info.tensor_shape)
    # A string tensor comes out of a session as an array of dtype object.
    same_dtype = observed.dtype.kind in "OS" if dtype == tf.string else observed.dtype == dtype.as_numpy_dtype
    if same_dtype and shape.is_compatible_with(observed.shape):
        return ""
    return f"the signature states {form(info)}, found {observed.dtype.name}{list(observed.shape)}"
