"""A model that is served tensors in place of tf.Examples: its one signature is a PredictOutput."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

PARTS = ("mean", "error", "worst")


def build_estimator(params: dict[str, Any], config: Any) -> Any:
    """Return the Estimator; `params` are those of the YAML."""
    return tf.estimator.Estimator(_model_fn, config=config, params=params)


def _model_fn(features: Any, labels: Any, mode: str, params: dict[str, Any]) -> Any:
    # Areas are in the hundreds, fractal dimensions in the hundredths: the logarithm brings them together.
    measures = tf.math.log1p(tf.concat([features[part] for part in PARTS], axis=1))
    logits = tf.compat.v1.layers.dense(measures, 1)[:, 0]
    malignant = tf.sigmoid(logits)
    if mode == tf.estimator.ModeKeys.PREDICT:
        # Classify and Regress take tf.Examples only; the default signature must be a PredictOutput.
        answer = {"malignant": malignant}
        output = {"serving_default": tf.estimator.export.PredictOutput(answer)}
        return tf.estimator.EstimatorSpec(mode, predictions=answer, export_outputs=output)
    loss = tf.compat.v1.losses.sigmoid_cross_entropy(labels, logits)
    metrics = {"accuracy": tf.compat.v1.metrics.accuracy(labels, malignant > params["malignant_above"])}
    optimizer = tf.compat.v1.train.AdamOptimizer(params["learning_rate"])
    train_op = optimizer.minimize(loss, tf.compat.v1.train.get_global_step())
    return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train_op, eval_metric_ops=metrics)
