"""A model_fn of our own with two heads on one trunk, and a vocabulary that travels with the model.

Served, each head is a signature, asked for by its name: `serving_default` (Classify) is the species,
`petal_width` (Regress) its width in cm, `flower` (Predict) both in one answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf

SPECIES = Path(__file__).parent / "species.txt"
MEASURES = ("sepal_length", "sepal_width", "petal_length")


def build_estimator(params: dict[str, Any], config: Any) -> Any:
    """Return the Estimator; `params` are those of the YAML."""
    return tf.estimator.Estimator(_model_fn, config=config, params=params)


def _model_fn(features: Any, labels: Any, mode: str, params: dict[str, Any]) -> Any:
    trunk = tf.stack([features[name] for name in MEASURES], axis=1)
    for units in params["hidden_units"]:
        trunk = tf.compat.v1.layers.dense(trunk, units, activation=tf.nn.relu)
    logits = tf.compat.v1.layers.dense(trunk, params["species"])
    width = tf.compat.v1.layers.dense(trunk, 1)
    if mode == tf.estimator.ModeKeys.PREDICT:
        return _predictions(logits, width)
    return _losses(logits, width[:, 0], labels, mode, params)


def _predictions(logits: Any, width: Any) -> Any:
    """Name the outputs: each of export_outputs becomes a signature."""
    scores = tf.nn.softmax(logits)
    # The table's file becomes an asset of the SavedModel: a server reads it there, not here.
    names = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(SPECIES), tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER,
            tf.string, tf.lookup.TextFileIndex.WHOLE_LINE,
        ),
        default_value="?",
    )  # fmt: skip
    likely = names.lookup(tf.argmax(logits, axis=1))
    ids = tf.range(tf.shape(logits, out_type=tf.int64)[1])
    classes = tf.tile(names.lookup(ids)[tf.newaxis, :], [tf.shape(logits)[0], 1])
    flower = {"species": likely, "scores": scores, "petal_width": width[:, 0]}
    outputs = {
        "serving_default": tf.estimator.export.ClassificationOutput(scores, classes),
        "petal_width": tf.estimator.export.RegressionOutput(width),
        "flower": tf.estimator.export.PredictOutput(flower),
    }
    return tf.estimator.EstimatorSpec(
        tf.estimator.ModeKeys.PREDICT, predictions=flower, export_outputs=outputs
    )


def _losses(logits: Any, width: Any, labels: Any, mode: str, params: dict[str, Any]) -> Any:
    ids = tf.lookup.StaticVocabularyTable(
        tf.lookup.TextFileInitializer(
            str(SPECIES), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER,
        ),
        num_oov_buckets=1,
    ).lookup(labels["species"])  # fmt: skip
    loss = tf.compat.v1.losses.sparse_softmax_cross_entropy(ids, logits)
    loss += tf.compat.v1.losses.mean_squared_error(labels["petal_width"], width)
    metrics = {
        "accuracy": tf.compat.v1.metrics.accuracy(ids, tf.argmax(logits, axis=1)),
        "width_rmse": tf.compat.v1.metrics.root_mean_squared_error(labels["petal_width"], width),
    }
    optimizer = tf.compat.v1.train.AdamOptimizer(params["learning_rate"])
    train_op = optimizer.minimize(loss, tf.compat.v1.train.get_global_step())
    return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train_op, eval_metric_ops=metrics)
