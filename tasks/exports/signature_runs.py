"""One signature of a loaded SavedModel, run on the sample examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tasks.answers.comparison import Arrays
from tasks.exports.saved_models import form, is_batched


class SignatureRun:
    """A signature that can be run again and again, on the same examples."""

    def __init__(self, session: Any, name: str, definition: Any, inputs: Arrays) -> None:
        """`definition` is the SignatureDef in the session's graph; `inputs` holds every example by alias."""
        self.name, self._outputs, self._inputs = name, dict(sorted(definition.outputs.items())), inputs
        self.examples = len(next(iter(inputs.values())))
        self._run = session.make_callable(
            {alias: info.name for alias, info in self._outputs.items()},
            feed_list=[definition.inputs[alias].name for alias in inputs],
        )

    def batches(self, size: int) -> Iterator[tuple[int, Arrays]]:
        """Yield the number of the first example and the answers of each batch of `size`, in order."""
        for first in range(0, self.examples, size):
            answers = self._run(*(array[first : first + size] for array in self._inputs.values()))
            yield first, {alias: np.asarray(answers[alias]) for alias in self._outputs}

    def answers(self) -> Arrays:
        """Return the answers about all examples at once, by output alias."""
        return next(self.batches(self.examples))[1]

    def whole(self, parts: list[Arrays]) -> Arrays:
        """Return the answers of all batches as one array for each output."""
        return {
            alias: np.concatenate([part[alias] for part in parts])
            if is_batched(info) and all(part[alias].ndim for part in parts)
            else parts[0][alias]
            for alias, info in self._outputs.items()
        }

    def unlike_stated(self, answers: Arrays) -> str:
        """Return how an answer's dtype or shape differs from what the SignatureDef states, if it does."""
        for alias, info in self._outputs.items():
            if problem := unlike(info, answers[alias]):
                return f"output {alias!r}: {problem}"
        return ""


def unlike(info: Any, observed: NDArray[Any]) -> str:
    """Return how dtype and shape differ from those of a TensorInfo; empty if they do not."""
    dtype, shape = tf.as_dtype(info.dtype), tf.TensorShape(info.tensor_shape)
    # A string tensor comes out of a session as an array of dtype object.
    same_dtype = observed.dtype.kind in "OS" if dtype == tf.string else observed.dtype == dtype.as_numpy_dtype
    if same_dtype and shape.is_compatible_with(observed.shape):
        return ""
    return f"the signature states {form(info)}, found {observed.dtype.name}{list(observed.shape)}"
