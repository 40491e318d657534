"""The pipeline's own preprocessing: one function, called at training and at serving alike.

It turns a dict of parsed features into another, with TensorFlow ops. As both the input_fn and every
serving input receiver call it, there is no second version of it that could drift from the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from configs.schema.features import FeatureSpec, FeatureSpecs
from configs.schema.pipeline import ModelConfig
from tasks.core.artifacts import Run
from tasks.core.errors import ModelError
from tasks.core.references import resolve
from tasks.examples.tf_examples import Preprocess, parsing_spec


def preprocess_of(model: ModelConfig, run: Run) -> Preprocess | None:
    """Return the function that `model.preprocess` names, its answers checked; None without one.

    Raises ModelError, also later, when it fails or returns no dict of tensors.
    """
    if model.preprocess is None:
        return None
    place = f"model.preprocess = {model.preprocess!r}"
    return _checked(resolve(model.preprocess, run.source, "model.preprocess", ModelError), place)


def _checked(function: Callable[[dict[str, Any]], Any], place: str) -> Preprocess:
    def preprocess(features: Mapping[str, Any]) -> dict[str, Any]:
        try:
            made = function(dict(features))
        except Exception as error:
            message = f"{place} failed: {type(error).__name__}: {error}"
            raise ModelError(message, "it is called with a dict of feature tensors") from error
        if not isinstance(made, Mapping) or not made:
            message = f"{place}: expected it to return a dict of tensors, found {type(made).__name__}"
            raise ModelError(message, "end it with: return features")
        return dict(made)

    return preprocess


def seen_by_model(specs: FeatureSpecs, preprocess: Preprocess | None) -> FeatureSpecs:
    """Return the specs of what the model sees: those of the features after preprocessing."""
    if preprocess is None:
        return specs
    with tf.Graph().as_default():
        serialized = tf.compat.v1.placeholder(tf.string, [None])
        made = preprocess(tf.io.parse_example(serialized, parsing_spec(specs)))
        return {name: _spec(name, tensor) for name, tensor in made.items()}


def _spec(name: str, tensor: Any) -> FeatureSpec:
    dtype = tf.as_dtype(tensor.dtype).name
    if dtype not in ("float32", "int64", "string"):
        message = (
            f"model.preprocess: feature {name!r} is {dtype}: feature columns take float32, int64, string"
        )
        raise ModelError(message, f"tf.cast it, or use a factory in place of model.estimator: {name!r}")
    if isinstance(tensor, tf.RaggedTensor):
        return FeatureSpec(dtype=dtype, kind="ragged")
    if isinstance(tensor, tf.SparseTensor):
        return FeatureSpec(dtype=dtype, kind="var_len")
    shape = [size or 1 for size in tf.TensorShape(tensor.shape).as_list()[1:]]
    return FeatureSpec(dtype=dtype, shape=tuple(shape))
