"""Tonight's data for the raw tensors: 569 breast masses, which come with scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf
from sklearn.datasets import load_breast_cancer

PARTS = ("mean", "error", "worst")


def write_masses(folder: Path) -> None:
    """Write one tf.Example a mass: `mean`, `error` and `worst` of ten measures of its cell nuclei.

    The Breast Cancer Wisconsin (Diagnostic) data of Wolberg, Street and Mangasarian (1995). `malignant`
    is 1 or 0, an int64.
    """
    masses = load_breast_cancer()
    with tf.io.TFRecordWriter(str(folder / "masses.tfrecord")) as writer:
        for measures, benign in zip(masses.data, masses.target, strict=True):
            features: dict[str, Any] = {
                part: tf.train.Feature(float_list=tf.train.FloatList(value=values.tolist()))
                for part, values in zip(PARTS, measures.reshape(3, 10), strict=True)
            }
            malignant = tf.train.Int64List(value=[1 - int(benign)])
            features["malignant"] = tf.train.Feature(int64_list=malignant)
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString(deterministic=True))
