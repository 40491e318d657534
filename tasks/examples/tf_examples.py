"""tf.Examples: parsing specs from the YAML's feature specs, and input pipelines of parsed batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from configs.schema.features import FeatureSpec, FeatureSpecs
from configs.schema.pipeline import DataConfig, TrainingConfig

Preprocess = Callable[[Mapping[str, Any]], dict[str, Any]]
"""From parsed features to what the model sees; see `tasks/examples/preprocessing.py`."""

_FILES_READ_AT_ONCE = 4
_RECORDS_READ_AT_ONCE = 64
_SEEDS_APART = 1_000_003  # so that the epochs of one seed are not those of the next


def parsing_spec(specs: FeatureSpecs) -> dict[str, Any]:
    """Return what `tf.io.parse_example` takes as `features`."""
    return {name: _parser(spec) for name, spec in specs.items()}


def _parser(spec: FeatureSpec) -> Any:
    dtype = tf.as_dtype(spec.dtype)
    if spec.kind == "var_len":
        return tf.io.VarLenFeature(dtype)
    if spec.kind == "sparse":
        return tf.io.SparseFeature(list(spec.index_keys), spec.value_key, dtype, list(spec.shape))
    if spec.kind == "ragged":
        return tf.io.RaggedFeature(dtype, value_key=spec.value_key, row_splits_dtype=tf.int64)
    if spec.kind == "fixed_len_sequence":
        return tf.io.FixedLenSequenceFeature(
            spec.shape, dtype, allow_missing=True, default_value=spec.default
        )
    default = None if spec.default is None else np.full(spec.shape, spec.default, dtype.as_numpy_dtype)
    return tf.io.FixedLenFeature(spec.shape, dtype, default_value=default)


def examples_spec(data: DataConfig) -> FeatureSpecs:
    """Return the specs of all that tonight's tf.Examples hold: features and label."""
    return {**data.features, **data.label}


@dataclass(frozen=True)
class Position:
    """Where input begins that is the same at a step whenever training was killed and resumed."""

    records_before: int
    """Examples that the steps before have taken, those of former epochs too."""
    epoch: int
    """Examples an epoch: all in the files."""


def training_batches(
    files: Sequence[Path], data: DataConfig, training: TrainingConfig,
    preprocess: Preprocess | None = None, start: Position | None = None,
) -> Any:  # fmt: skip
    """Return an endless tf.data.Dataset of (features, labels), shuffled, `training.batch_size` each.

    Records are batched before they are parsed: one parse op a batch. With `start`, the batch of a step
    depends on seed, epoch and step only.
    """
    shuffled = _shuffled(files, training).repeat() if start is None else _from(start, files, training)
    # Endless, so no batch is short: said to TensorFlow, the shapes are static (Baseline* need that).
    return _parsed(shuffled.batch(training.batch_size, drop_remainder=True), data, preprocess)


def _shuffled(files: Sequence[Path], training: TrainingConfig, **options: Any) -> Any:
    """Return the records of an epoch; `options` are those of tf.data.Dataset.shuffle."""
    options = {"seed": training.seed, **options}
    names = tf.data.Dataset.from_tensor_slices([str(file) for file in files])
    records = names.shuffle(len(files), **options).interleave(
        tf.data.TFRecordDataset,
        cycle_length=_FILES_READ_AT_ONCE,
        block_length=_RECORDS_READ_AT_ONCE,
    )  # by the one thread that prefetches: others took time from the steps, a fifth of it (benchmarks.md)
    return records.shuffle(training.shuffle_buffer, **options)


def _from(start: Position, files: Sequence[Path], training: TrainingConfig) -> Any:
    """Return the records of all epochs from `start` on; at most one epoch is read to skip them."""
    first_epoch, skipped = divmod(start.records_before, start.epoch)

    def epoch(number: Any) -> Any:
        seed = training.seed + number * _SEEDS_APART
        return _shuffled(files, training, seed=seed, reshuffle_each_iteration=False)

    return tf.data.Dataset.range(first_epoch, tf.int64.max).flat_map(epoch).skip(skipped)


def batches(
    files: Sequence[Path], data: DataConfig, batch_size: int, preprocess: Preprocess | None = None
) -> Any:
    """Return a tf.data.Dataset of (features, labels): every example once, in the order of the files."""
    records = tf.data.TFRecordDataset([str(file) for file in files])
    return _parsed(records.batch(batch_size), data, preprocess)


def _parsed(serialized_batches: Any, data: DataConfig, preprocess: Preprocess | None) -> Any:
    spec = parsing_spec(examples_spec(data))

    # Receivers preprocess in a plain graph, where `if` on a tensor is an error: so it is to be here.
    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def parse(serialized: Any) -> Any:
        return split_labels(tf.io.parse_example(serialized, spec), data, preprocess)

    return serialized_batches.map(parse, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def split_labels(parsed: Mapping[str, Any], data: DataConfig, preprocess: Preprocess | None) -> Any:
    """Return (features, labels) as the model sees them: one label as it is, several as a dict, else None."""
    features = {name: parsed[name] for name in data.features}
    labels = {name: parsed[name] for name in data.label}
    features = preprocess(features) if preprocess else features
    if not labels:
        return features, None
    return features, next(iter(labels.values())) if len(labels) == 1 else labels


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
