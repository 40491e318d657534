"""Tonight's data for the diabetes regression: 442 patients, who come with scikit-learn."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
from sklearn.datasets import load_diabetes


def write_patients(folder: Path) -> None:
    """Write one tf.Example a patient: ten measures at the start and `progression` a year later.

    From Efron, Hastie, Johnstone and Tibshirani, "Least Angle Regression" (2004), not scaled: `age` in
    years, `sex` as 1 or 2 (an int64), `bmi` in kg/m², `bp` in mmHg, `s1` … `s6` of the blood serum.
    """
    patients = load_diabetes(scaled=False)
    with tf.io.TFRecordWriter(str(folder / "patients.tfrecord")) as writer:
        for measures, progression in zip(patients.data.tolist(), patients.target.tolist(), strict=True):
            values = dict(zip(patients.feature_names, measures, strict=True), progression=progression)
            features = {name: _feature(name, value) for name, value in values.items()}
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString(deterministic=True))


def _feature(name: str, value: float) -> tf.train.Feature:
    if name == "sex":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value)]))
    return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
