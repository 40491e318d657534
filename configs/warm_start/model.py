"""A model that grows: `params` names its first layer, and says how many residual blocks follow it.

A new block's last kernel is zero, so that a model which is warm-started, and has one block more than
the served one, begins with exactly the answers of the served one.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def build_estimator(params: dict[str, Any], config: Any) -> Any:
    """Return the Estimator; `params` are those of the YAML."""
    return tf.estimator.Estimator(_model_fn, config=config, params=params)


def _model_fn(features: Any, labels: Any, mode: str, params: dict[str, Any]) -> Any:
    layers, units = tf.compat.v1.layers, params["units"]
    net = layers.dense(features["measures"], units, tf.nn.relu, name=params["first_layer"])
    for block in range(params["blocks"]):
        net += layers.dense(net, units, kernel_initializer=tf.zeros_initializer(), name=f"block_{block}")
    logits = layers.dense(net, params["cultivars"], name="logits")
    scores = tf.nn.softmax(logits)
    if mode == tf.estimator.ModeKeys.PREDICT:
        output = tf.estimator.export.ClassificationOutput(scores)
        return tf.estimator.EstimatorSpec(
            mode, predictions={"scores": scores}, export_outputs={"serving_default": output}
        )
    loss = tf.compat.v1.losses.sparse_softmax_cross_entropy(labels, logits)
    metrics = {"accuracy": tf.compat.v1.metrics.accuracy(labels, tf.argmax(logits, axis=1))}
    optimizer = tf.compat.v1.train.AdamOptimizer(params["learning_rate"])
    train_op = optimizer.minimize(loss, tf.compat.v1.train.get_global_step())
    return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train_op, eval_metric_ops=metrics)
