"""tf.feature_column objects from the YAML's feature columns, checked against the feature specs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import tensorflow as tf

from configs.schema import features as config
from configs.schema.features import FeatureSpec, FeatureSpecs
from tasks.core.errors import ModelError


def build(columns: Iterable[config.FeatureColumn] | None, specs: FeatureSpecs, folder: Path) -> list[Any]:
    """Return feature columns; without any given, a numeric one for each numeric fixed-length feature.

    `folder` holds the YAML: vocabulary files are relative to it. Raises ModelError.
    """
    if columns is None:
        columns = _numeric_by_default(specs)
    builder = _Builder(specs, folder)
    return [builder.build(column) for column in columns]


def _numeric_by_default(specs: FeatureSpecs) -> list[config.NumericColumn]:
    names = [name for name, spec in specs.items() if spec.kind == "fixed_len" and spec.dtype != "string"]
    if not names:
        message = f"model.feature_columns: none of {', '.join(specs)} is numeric and of fixed length"
        raise ModelError(message, "say in model.feature_columns how the model is to see the features")
    return [config.NumericColumn(kind="numeric", key=name) for name in names]


class _Builder:
    def __init__(self, specs: FeatureSpecs, folder: Path) -> None:
        self._specs, self._folder = specs, folder

    def build(self, column: Any) -> Any:
        builders: dict[type, Callable[[Any], Any]] = {
            config.NumericColumn: self._numeric,
            config.BucketizedColumn: self._bucketized,
            config.VocabularyColumn: self._vocabulary,
            config.HashBucketColumn: self._hash_bucket,
            config.IdentityColumn: self._identity,
            config.CrossedColumn: self._crossed,
            config.EmbeddingColumn: self._embedding,
            config.IndicatorColumn: self._indicator,
        }
        return builders[type(column)](column)

    def _numeric(self, column: config.NumericColumn) -> Any:
        shape = column.shape or self._spec(column.key, "float32", "int64").shape or (1,)
        return tf.feature_column.numeric_column(
            column.key, shape=shape, normalizer_fn=_normalizer(column.mean, column.std)
        )

    def _bucketized(self, column: config.BucketizedColumn) -> Any:
        shape = self._spec(column.key, "float32", "int64").shape or (1,)
        source = tf.feature_column.numeric_column(column.key, shape=shape)
        return tf.feature_column.bucketized_column(source, list(column.boundaries))

    def _vocabulary(self, column: config.VocabularyColumn) -> Any:
        dtype = tf.as_dtype(self._spec(column.key, "string", "int64").dtype)
        if column.values is not None:
            return tf.feature_column.categorical_column_with_vocabulary_list(
                column.key, column.values, dtype=dtype, num_oov_buckets=column.num_oov_buckets
            )
        file = self._folder / str(column.file)
        if not file.is_file():
            message = f"model.feature_columns: vocabulary of {column.key!r}: no such file: {file}"
            raise ModelError(message, "the path is relative to the YAML; the file has a word a line")
        return tf.feature_column.categorical_column_with_vocabulary_file(
            column.key, str(file), dtype=dtype, num_oov_buckets=column.num_oov_buckets
        )

    def _hash_bucket(self, column: config.HashBucketColumn) -> Any:
        dtype = tf.as_dtype(self._spec(column.key, "string", "int64").dtype)
        return tf.feature_column.categorical_column_with_hash_bucket(column.key, column.buckets, dtype)

    def _identity(self, column: config.IdentityColumn) -> Any:
        self._spec(column.key, "int64")
        return tf.feature_column.categorical_column_with_identity(column.key, column.buckets, column.default)

    def _crossed(self, column: config.CrossedColumn) -> Any:
        return tf.feature_column.crossed_column([self._crossable(key) for key in column.keys], column.buckets)

    def _crossable(self, key: Any) -> Any:
        if not isinstance(key, str):
            return self.build(key)
        self._spec(key, "string", "int64")
        return key

    def _embedding(self, column: config.EmbeddingColumn) -> Any:
        return tf.feature_column.embedding_column(self.build(column.of), column.dimension, column.combiner)

    def _indicator(self, column: config.IndicatorColumn) -> Any:
        return tf.feature_column.indicator_column(self.build(column.of))

    def _spec(self, key: str, *dtypes: str) -> FeatureSpec:
        """Return the spec of a column's feature, whose dtype must be one of `dtypes`."""
        place = f"model.feature_columns: {key!r}"
        if key not in self._specs:
            near = difflib.get_close_matches(key, self._specs, n=1)
            message = f"{place} is not one of data.features: {', '.join(self._specs)}"
            raise ModelError(message, f"did you mean {near[0]!r}?" if near else "add it to data.features")
        spec = self._specs[key]
        if spec.kind == "ragged":
            raise ModelError(f"{place} is ragged, and feature columns take none", "make it var_len")
        if spec.dtype not in dtypes:
            message = f"{place}: expected a feature of dtype {' or '.join(dtypes)}, found {spec.dtype}"
            raise ModelError(message, "use another kind of column for it")
        return spec


def _normalizer(mean: float, std: float) -> Callable[[Any], Any] | None:
    if (mean, std) == (0.0, 1.0):
        return None
    return lambda values: (tf.cast(values, tf.float32) - mean) / std
