"""tf.Examples: parsing specs from the YAML's feature specs, and input pipelines of parsed batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from configs.features import FeatureSpec, FeatureSpecs
from configs.schema import DataConfig, TrainingConfig

_FILES_READ_AT_ONCE = 4


def parsing_spec(specs: FeatureSpecs) -> dict[str, Any]:
    """Return what `tf.io.parse_example` takes as `features`."""
    return {name: _parser(spec) for name, spec in specs.items()}


def _parser(spec: FeatureSpec) -> Any:
    dtype = tf.as_dtype(spec.dtype)
    if spec.kind == "var_len":
        return tf.io.VarLenFeature(dtype)
    if spec.kind == "fixed_len_sequence":
        return tf.io.FixedLenSequenceFeature(
            spec.shape, dtype, allow_missing=True, default_value=spec.default
        )
    default = None if spec.default is None else np.full(spec.shape, spec.default, dtype.as_numpy_dtype)
    return tf.io.FixedLenFeature(spec.shape, dtype, default_value=default)


def examples_spec(data: DataConfig) -> FeatureSpecs:
    """Return the specs of all that tonight's tf.Examples hold: features and label."""
    return {**data.features, **data.label}


def training_batches(files: Sequence[Path], data: DataConfig, training: TrainingConfig) -> Any:
    """Return an endless tf.data.Dataset of (features, labels), shuffled, `training.batch_size` each.

    Records are batched before they are parsed: one parse op a batch.
    """
    names = tf.data.Dataset.from_tensor_slices([str(file) for file in files])
    records = names.shuffle(len(files), seed=training.seed).interleave(
        tf.data.TFRecordDataset,
        cycle_length=_FILES_READ_AT_ONCE,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    shuffled = records.shuffle(training.shuffle_buffer, seed=training.seed).repeat()
    # Endless, so no batch is short: said to TensorFlow, the shapes are static (Baseline* need that).
    return _parsed(shuffled.batch(training.batch_size, drop_remainder=True), data)


def batches(files: Sequence[Path], data: DataConfig, batch_size: int) -> Any:
    """Return a tf.data.Dataset of (features, labels): every example once, in the order of the files."""
    return _parsed(tf.data.TFRecordDataset([str(file) for file in files]).batch(batch_size), data)


def _parsed(serialized_batches: Any, data: DataConfig) -> Any:
    spec = parsing_spec(examples_spec(data))

    def parse(serialized: Any) -> Any:
        features = tf.io.parse_example(serialized, spec)
        labels = {name: features.pop(name) for name in data.label}
        return features, next(iter(labels.values())) if len(labels) == 1 else labels

    return serialized_batches.map(parse, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def read_records(files: Sequence[Path], limit: int | None = None) -> list[bytes]:
    """Return the serialized examples of TFRecord files, in order, at most `limit`."""
    dataset = tf.data.TFRecordDataset([str(file) for file in files])
    return list(dataset.take(-1 if limit is None else limit).as_numpy_iterator())


def write_records(file: Path, records: Iterable[bytes]) -> None:
    """Write serialized examples to a TFRecord file."""
    with tf.io.TFRecordWriter(str(file)) as writer:
        for record in records:
            writer.write(record)


def serialize(
    values: Mapping[str, Sequence[float] | Sequence[int] | Sequence[bytes]], specs: FeatureSpecs
) -> bytes:
    """Return a serialized tf.Example that holds `values`, with the dtypes of `specs`.

    The same values always give the same bytes; protobuf promises that for one build of it only.
    """
    feature = {name: _FEATURES[specs[name].dtype](value) for name, value in values.items()}
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    return bytes(example.SerializeToString(deterministic=True))


_FEATURES: Mapping[str, Any] = {
    "float32": lambda value: tf.train.Feature(float_list=tf.train.FloatList(value=value)),
    "int64": lambda value: tf.train.Feature(int64_list=tf.train.Int64List(value=value)),
    "string": lambda value: tf.train.Feature(bytes_list=tf.train.BytesList(value=value)),
}
