"""Serving input receivers: what a served model takes in, without the label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import tensorflow as tf

from configs.features import FeatureSpecs
from tasks.errors import ModelError
from tasks.tf_examples import parsing_spec

RAW = "raw"


def receiver_fn(receivers: Sequence[Literal["parsing", "raw"]], features: FeatureSpecs) -> Callable[[], Any]:
    """Return the serving_input_receiver_fn for one export with all of `receivers`.

    With both, the parsing one is the default, and the signatures of the raw one are named
    `raw:<signature>`, its inputs being the parsed tensors. Raises ModelError.
    """
    if RAW in receivers:
        _refuse_sparse(features)
    if tuple(receivers) == (RAW,):
        return _raw(features)
    if RAW in receivers:
        return lambda: _parsing_and_raw(features)
    return tf.estimator.export.build_parsing_serving_input_receiver_fn(parsing_spec(features))  # type: ignore[no-any-return]


def _refuse_sparse(features: FeatureSpecs) -> None:
    sparse = [name for name, spec in features.items() if spec.kind == "var_len"]
    if sparse:
        message = f"export.receivers: raw takes dense tensors, and the feature {sparse[0]!r} is var_len"
        raise ModelError(message, "make it fixed_len or fixed_len_sequence, or use receivers: [parsing]")


def _raw(features: FeatureSpecs) -> Callable[[], Any]:
    with tf.Graph().as_default():  # the receiver function takes only dtypes and shapes from these
        tensors = {
            name: tf.compat.v1.placeholder(spec.dtype, _batched_shape(spec.kind, spec.shape), name=name)
            for name, spec in features.items()
        }
    return tf.estimator.export.build_raw_serving_input_receiver_fn(tensors)  # type: ignore[no-any-return]


def _batched_shape(kind: str, shape: tuple[int, ...]) -> list[int | None]:
    return [None, None, *shape] if kind == "fixed_len_sequence" else [None, *shape]


def _parsing_and_raw(features: FeatureSpecs) -> Any:
    examples = tf.compat.v1.placeholder(tf.string, [None], name="input_example_tensor")
    parsed = tf.io.parse_example(examples, parsing_spec(features))
    return tf.estimator.export.ServingInputReceiver(
        parsed, {"examples": examples}, receiver_tensors_alternatives={RAW: dict(parsed)}
    )
