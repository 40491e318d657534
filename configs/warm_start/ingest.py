"""Tonight's data for the warm start: 178 wines, which come with scikit-learn."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
from sklearn.datasets import load_wine


def write_wines(folder: Path) -> None:
    """Write one tf.Example a wine: 13 `measures`, each with mean 0 and variance 1, and its `cultivar`.

    The UCI "Wine" data of Forina et al. (1991): alcohol, malic acid, ash … of wines from three cultivars.
    """
    wines = load_wine()
    measures = (wines.data - wines.data.mean(axis=0)) / wines.data.std(axis=0)
    with tf.io.TFRecordWriter(str(folder / "wines.tfrecord")) as writer:
        for row, cultivar in zip(measures, wines.target, strict=True):
            writer.write(_example(row.tolist(), int(cultivar)).SerializeToString(deterministic=True))


def _example(measures: list[float], cultivar: int) -> tf.train.Example:
    features = {
        "measures": tf.train.Feature(float_list=tf.train.FloatList(value=measures)),
        "cultivar": tf.train.Feature(int64_list=tf.train.Int64List(value=[cultivar])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features))
