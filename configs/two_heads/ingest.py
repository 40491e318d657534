"""Tonight's data for the two heads: scikit-learn's 150 irises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf
from sklearn.datasets import load_iris


def write_irises(folder: Path) -> None:
    """Write one tf.Example for each flower of Fisher's irises (1936), which come with scikit-learn.

    Three float32 features in cm; the labels are `species`, a name as bytes, and `petal_width` in cm.
    """
    irises = load_iris()
    with tf.io.TFRecordWriter(str(folder / "irises.tfrecord")) as writer:
        for measures, target in zip(irises.data.tolist(), irises.target, strict=True):
            species = str(irises.target_names[target])
            writer.write(_example(measures, species).SerializeToString(deterministic=True))


def _example(measures: list[float], species: str) -> tf.train.Example:
    names = ("sepal_length", "sepal_width", "petal_length", "petal_width")
    features: dict[str, Any] = {
        name: tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
        for name, value in zip(names, measures, strict=True)
    }
    features["species"] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[species.encode()]))
    return tf.train.Example(features=tf.train.Features(feature=features))
