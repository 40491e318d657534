"""What `estimator.predict` says, named as the signatures of the export name it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from configs.schema import DataConfig
from tasks.examples.tf_examples import Preprocess, batches
from tasks.exports.saved_models import is_batched

BATCH = 256


def predict_signatures(
    estimator: Any, checkpoint: Path, file: Path, data: DataConfig, preprocess: Preprocess | None = None
) -> dict[str, dict[str, NDArray[Any]]]:
    """Return, for each of the model_fn's export_outputs, an array for each output alias.

    Asks `estimator.predict` of the examples in a TFRecord `file`, for any model_fn: a second Estimator,
    on the same model_dir, calls the first one's model_fn and makes its export_outputs the predictions.
    """
    wrapped = _Exposed(estimator)
    exposing = tf.estimator.Estimator(wrapped.model_fn, config=estimator.config)
    answers = list(
        exposing.predict(
            lambda: batches([file], data, BATCH, preprocess),
            checkpoint_path=str(checkpoint),
            yield_single_examples=False,
        )
    )
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for key, (name, alias, batched) in wrapped.outputs.items():
        arrays = [answer[key] for answer in answers]
        found.setdefault(name, {})[alias] = np.concatenate(arrays) if batched else np.asarray(arrays[0])
    return found


class _Exposed:
    """A model_fn whose predictions are what another Estimator's model_fn exports."""

    def __init__(self, estimator: Any) -> None:
        self._estimator = estimator
        self.outputs: dict[str, tuple[str, str, bool]] = {}
        """Key among the predictions to name of the export output, alias, and whether it is batched."""

    def model_fn(self, features: Any, labels: Any, mode: str, config: Any) -> Any:
        """Build the model for prediction; remember which prediction is which output."""
        spec = self._estimator.model_fn(features, labels, mode, config)
        graph = tf.compat.v1.get_default_graph()
        # as_signature_def() knows the aliases of every kind of output; it wants to be shown an input.
        examples = {"examples": tf.compat.v1.placeholder(tf.string, [None])}
        predictions: dict[str, Any] = {}
        for name, output in spec.export_outputs.items():
            for alias, info in output.as_signature_def(examples).outputs.items():
                key = str(len(predictions))
                predictions[key] = graph.get_tensor_by_name(info.name)
                self.outputs[key] = (name, alias, is_batched(info))
        return spec._replace(predictions=predictions)
