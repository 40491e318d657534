"""Tonight's data for the plain graph: 178 wines, which come with scikit-learn."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
from sklearn.datasets import load_wine


def write_wines(folder: Path) -> None:
    """Write one tf.Example a wine: 13 chemical measures, and the `cultivar` of its grapes, 0 to 2.

    The Wine data of Forina and others (UCI, 1991), in their own units.
    """
    wines = load_wine()
    with tf.io.TFRecordWriter(str(folder / "wines.tfrecord")) as writer:
        for measures, cultivar in zip(wines.data.tolist(), wines.target.tolist(), strict=True):
            features = {
                "measures": tf.train.Feature(float_list=tf.train.FloatList(value=measures)),
                "cultivar": tf.train.Feature(int64_list=tf.train.Int64List(value=[cultivar])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString(deterministic=True))
