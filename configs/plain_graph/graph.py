"""A TensorFlow 1 graph, without an Estimator: placeholders, variables and ops, as they were always built.

Slipway calls `build_graph` once for each graph that it needs and parses the examples for it. `tags` says
which graph: ("train",), ("eval",), or the tags of a MetaGraph of the export (`export.meta_graphs`).
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

tf1 = tf.compat.v1


def build_graph(features: Any, labels: Any, tags: tuple[str, ...], params: dict[str, Any]) -> dict[str, Any]:
    """Return the loss and the train_op, the metrics, or the signatures, as `tags` wants them."""
    with tf.device("/GPU:0" if "gpu" in tags else None):
        # Proline is in the hundreds, hue about 1: the logarithm brings them together.
        measures = tf.math.log1p(features["measures"])
        weights = tf1.get_variable("weights", [13, 3], tf.float32)
        bias = tf1.get_variable("bias", [3], tf.float32, tf1.zeros_initializer())
        logits = tf.matmul(measures, weights) + bias
    if "serve" in tags:
        return {"signatures": _signatures(logits)}
    loss = tf1.losses.sparse_softmax_cross_entropy(labels, logits)
    if "eval" in tags:
        return {"loss": loss, "metrics": {"accuracy": tf1.metrics.accuracy(labels, tf.argmax(logits, 1))}}
    optimizer = tf1.train.AdamOptimizer(params["learning_rate"])
    return {"loss": loss, "train_op": optimizer.minimize(loss, tf1.train.get_global_step())}


def _signatures(logits: Any) -> dict[str, Any]:
    scores = tf.nn.softmax(logits)
    return {
        "serving_default": {"method": "classify", "outputs": {"scores": scores}},
        "cultivar": {"outputs": {"cultivar": tf.argmax(logits, 1), "scores": scores}},
    }
