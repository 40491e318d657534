"""Tonight's data for the digits pipeline: TFRecord files of tf.Examples.

Copy this file to start your own. Slipway calls the function named in `pipeline.yaml` (`data.ingest`)
with an empty folder; whatever `*.tfrecord` files it leaves there are tonight's examples. Slipway then
checks every one against `data.features` and `data.label`, and splits them for training, evaluation
and sampling by a hash: the function need not shuffle, split or count. What it raises, or prints, is in
the run's `logs/ingest.log`.
"""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
from sklearn.datasets import load_digits

BRIGHTEST = 16.0  # scikit-learn counts ink in 0 … 16 for each pixel


def write_digits(folder: Path) -> None:
    """Write scikit-learn's 1,797 handwritten digits, one tf.Example each.

    `pixels` is an 8 by 8 image, row by row: 64 float32 from 0 (paper) to 1 (ink). `label` is the digit,
    an int64 from 0 to 9. The images are real: the test part of UCI's "Optical Recognition of Handwritten
    Digits" (Alpaydin and Kaynak, 1998), which comes with scikit-learn, so nothing is downloaded.
    """
    digits = load_digits()
    with tf.io.TFRecordWriter(str(folder / "digits.tfrecord")) as writer:
        for pixels, label in zip(digits.data / BRIGHTEST, digits.target, strict=True):
            # deterministic=True: the same image gives the same bytes every night, hence the same split.
            writer.write(_example(pixels.tolist(), int(label)).SerializeToString(deterministic=True))


def _example(pixels: list[float], label: int) -> tf.train.Example:
    features = {
        "pixels": tf.train.Feature(float_list=tf.train.FloatList(value=pixels)),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features))
