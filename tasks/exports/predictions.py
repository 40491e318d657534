"""What `estimator.predict` says of the sample examples, for each output that the model exports."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from configs.schema.pipeline import AnswersConfig, DataConfig
from tasks.answers import offline_answers
from tasks.core.artifacts import Examples
from tasks.examples.tf_examples import Preprocess, batches, read_records, write_records
from tasks.exports.saved_models import is_batched

BySize = dict[int, dict[str, NDArray[Any]]]
"""Batch size to output alias to array."""


def predict_samples(
    estimator: Any, checkpoint: Path, answers: AnswersConfig, examples: Examples, data: DataConfig,
    preprocess: Preprocess | None, folder: Path,
) -> tuple[int, dict[str, BySize]]:  # fmt: skip
    """Write the sample examples into an empty `folder`, and predict them in every batch size.

    Returns the number of samples, and the answers by export output (head).
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    records = read_records(examples.sample.files, limit=answers.samples)
    file = offline_answers.examples_file(folder)
    write_records(file, records)
    sizes = answers.sizes(len(records))
    return len(records), predict_signatures(
        estimator, checkpoint, file, data, sizes, len(records), preprocess
    )


def predict_signatures(
    estimator: Any, checkpoint: Path, file: Path, data: DataConfig, sizes: Sequence[int], examples: int,
    preprocess: Preprocess | None = None,
) -> dict[str, BySize]:  # fmt: skip
    """Return, for each of the model_fn's export_outputs, the answers in batches of each of `sizes`.

    Predicts all `examples` of the TFRecord `file`, for any model_fn: a second Estimator, on the same
    model_dir, calls the first one's model_fn and makes the tensors of one export output the predictions. One
    session predicts all sizes, one after the other; each output has a session, as it has a run of the graph
    when it is served: Grappler fuses ops (a sigmoid with the matrix product before it, say) whose results
    nothing else needs, and a fused op rounds differently.
    """
    found: dict[str, BySize] = {}
    pending = True
    while pending:
        wrapped = _Exposed(estimator, found.keys())
        exposing = tf.estimator.Estimator(wrapped.model_fn, config=estimator.config)
        answers = exposing.predict(
            lambda: reduce(
                lambda one, other: one.concatenate(other),
                (batches([file], data, size, preprocess) for size in sizes),
            ),
            checkpoint_path=str(checkpoint),
            yield_single_examples=False,
        )
        parts = iter(list(answers))
        by_size: BySize = {}
        for size in sizes:
            of_size = [next(parts) for _ in range(0, examples, size)]
            by_size[size] = {
                alias: np.concatenate([part[alias] for part in of_size])
                if batched
                else np.asarray(of_size[0][alias])  # a scalar comes as NumPy's or, a string, as bytes
                for alias, batched in wrapped.batched.items()
            }
        found |= dict.fromkeys(wrapped.names, by_size)
        pending = wrapped.pending
    return found


def write(folder: Path, predicted: Mapping[str, BySize]) -> None:
    """Write predictions by export output, or by signature."""
    for name, by_size in predicted.items():
        for size, arrays in by_size.items():
            offline_answers.write(folder, "predicted", name, size, arrays)


class _Exposed:
    """A model_fn whose predictions are one of the export outputs of another model_fn."""

    def __init__(self, estimator: Any, done: Collection[str]) -> None:
        """`done` are the export outputs that are predicted already."""
        self._estimator, self._done = estimator, set(done)
        self.names: list[str] = []
        """The export outputs that are predicted: those that are made of the same tensors."""
        self.batched: dict[str, bool] = {}
        """Alias to whether the output has a row for each example."""
        self.pending = False
        """Whether more export outputs are left."""

    def model_fn(self, features: Any, labels: Any, mode: str, config: Any) -> Any:
        """Build the model for prediction of the first export output that is not done."""
        spec = self._estimator.model_fn(features, labels, mode, config)
        graph = tf.compat.v1.get_default_graph()
        # as_signature_def() knows the aliases of every kind of output; it wants to be shown an input.
        examples = {"examples": tf.compat.v1.placeholder(tf.string, [None])}
        outputs = {
            name: output.as_signature_def(examples).outputs for name, output in spec.export_outputs.items()
        }
        tensors = {
            name: {alias: info.name for alias, info in infos.items()} for name, infos in outputs.items()
        }
        chosen = next(name for name in outputs if name not in self._done)
        self.names = [name for name in outputs if tensors[name] == tensors[chosen]]
        self.pending = bool(outputs.keys() - self._done - set(self.names))
        self.batched = {alias: is_batched(info) for alias, info in outputs[chosen].items()}
        return spec._replace(
            predictions={alias: graph.get_tensor_by_name(name) for alias, name in tensors[chosen].items()}
        )
