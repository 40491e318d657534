"""Whether serialized tf.Examples hold what the YAML says; if not, which one, where, and what instead."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError

from configs.schema.features import FeatureSpec, FeatureSpecs, stored_in_examples
from tasks.core.errors import DataError
from tasks.examples.csv_examples import may_be_missing, values_of
from tasks.examples.example_sources import Batch
from tasks.examples.tf_examples import parsing_spec

_SHOWN = 3
_DTYPES = {"float_list": "float32", "int64_list": "int64", "bytes_list": "string"}


class ExampleChecker:
    """Parses batches with the feature spec, as training will, and explains what does not parse."""

    def __init__(self, specs: FeatureSpecs) -> None:
        self._specs = stored_in_examples(specs)
        self._parsing = parsing_spec(specs)
        self._sparse = {name: spec for name, spec in specs.items() if spec.kind == "sparse"}
        self._never_seen = {
            name: tf.io.VarLenFeature(spec.dtype)
            for name, spec in self._specs.items()
            if may_be_missing(spec)
        }
        self._first: bytes | None = None

    def check(self, batch: Batch) -> None:
        """Raise DataError that names the first example, and the feature, that is not as specified."""
        if self._first is None:
            self._first = batch.records[0]
        try:
            for name, spec in self._sparse.items():
                _require_coordinates(batch, name, spec)
            tf.io.parse_example(batch.records, self._parsing)
        except (tf.errors.InvalidArgumentError, UnicodeDecodeError) as error:
            # UnicodeDecodeError: TensorFlow's message quotes bytes that are no tf.Example.
            raise _culprit(batch, self._specs, error) from None
        self._look_for_optional(batch)

    def _look_for_optional(self, batch: Batch) -> None:
        if self._never_seen:
            found = tf.io.parse_example(batch.records, self._never_seen)
            self._never_seen = {
                name: parser for name, parser in self._never_seen.items() if not tf.size(found[name].values)
            }

    def keys(self, batch: Batch, feature: str | None) -> list[bytes] | None:
        """Return for each example the bytes that stand for its values of `feature`; None without one."""
        if feature is None:
            return None
        parser = tf.io.VarLenFeature(self._specs[feature].dtype)
        values = tf.io.parse_example(batch.records, {feature: parser})[feature]
        return [repr(row).encode() for row in tf.RaggedTensor.from_sparse(values).to_list()]

    def check_all(self, files: Sequence[Path]) -> None:
        """Raise DataError where there was no example, or one misspelt all the way.

        A feature that may be missing, and that no example has, passes as long as the examples do not
        have one of nearly the same name.
        """
        if self._first is None:
            names = ", ".join(str(file) for file in files[:_SHOWN]) + (" …" if len(files) > _SHOWN else "")
            raise DataError(f"zero examples in {len(files)} file(s): {names}", "did tonight's data arrive?")
        found = _found(tf.train.Example.FromString(self._first))
        for name in self._never_seen:
            near = _near(name, [other for other in found if other not in self._specs])
            if near:
                raise DataError(f"no example has the feature {name!r}; they have {_listed(found)}", near)


def _require_coordinates(batch: Batch, name: str, spec: FeatureSpec) -> None:
    """Raise DataError at an example of a sparse feature with an index too many, too few or out of range.

    TensorFlow counts over the whole batch, and looks at no index: it would mix up the examples.
    """
    stored = {key: tf.io.RaggedFeature(each.dtype) for key, each in spec.stored(name).items()}
    parsed = tf.io.parse_example(batch.records, stored)
    values = parsed[spec.value_key].row_lengths()
    for key, size in zip(spec.index_keys, spec.shape, strict=True):
        lengths, indices = parsed[key].row_lengths(), parsed[key]
        outside = tf.logical_or(indices.flat_values < 0, indices.flat_values >= size)
        bad = tf.logical_or(lengths != values, tf.reduce_any(indices.with_values(outside), axis=1))
        for index in tf.where(bad)[:1, 0].numpy():
            found = f"{indices[index].numpy().tolist()} for {values_of(int(values[index]), spec.dtype)}"
            message = f"{batch.place(int(index))}: feature {name!r}: expected as many indices in {key!r} as "
            raise DataError(
                f"{message}values in {spec.value_key!r}, from 0 to {size - 1}, found {found}",
                "a sparse feature's values need an index each",
            )


def _culprit(batch: Batch, specs: FeatureSpecs, error: Exception) -> DataError:
    """Find the example that does not parse, one by one."""
    for index, record in enumerate(batch.records):
        try:
            found = _found(tf.train.Example.FromString(record))
        except DecodeError:
            message = (
                f"{batch.place(index)}: expected a serialized tf.Example, found {len(record)} other bytes"
            )
            return DataError(message, "write tf.train.Example protos: example.SerializeToString()")
        for name, spec in specs.items():
            if problem := _problem(name, spec, found):
                return DataError(
                    f"{batch.place(index)}: feature {name!r}: {problem}", _hint(name, specs, found)
                )
    first, last = batch.place(0), batch.place(len(batch.records) - 1)
    return DataError(f"{first} … {last}: cannot be parsed: {error}")


def _found(example: Any) -> dict[str, tuple[str, int]]:
    """Return dtype and number of values of each feature that the example has."""
    kinds = {name: feature.WhichOneof("kind") for name, feature in example.features.feature.items()}
    return {
        name: (_DTYPES[kind], len(getattr(example.features.feature[name], kind).value))
        for name, kind in sorted(kinds.items()) if kind is not None
    }  # fmt: skip


def _problem(name: str, spec: FeatureSpec, found: dict[str, tuple[str, int]]) -> str | None:
    if name not in found:
        return None if may_be_missing(spec) else f"expected {_expected(spec)}, but it is missing"
    dtype, length = found[name]
    fits = {
        "fixed_len": length == spec.size,
        "fixed_len_sequence": length % spec.size == 0,
        "var_len": True,
    }[spec.kind]
    if dtype == spec.dtype and fits:
        return None
    return f"expected {_expected(spec)}, found {values_of(length, dtype)}"


def _expected(spec: FeatureSpec) -> str:
    if spec.kind == "var_len":
        return f"any number of {spec.dtype} values"
    if spec.kind == "fixed_len_sequence":
        return f"a multiple of {values_of(spec.size, spec.dtype)}"
    return values_of(spec.size, spec.dtype)


def _hint(name: str, specs: FeatureSpecs, found: dict[str, tuple[str, int]]) -> str:
    has = f"the example has {_listed(found)}"
    if name in found:
        return f"change data.features, or the data; {has}"
    near = _near(name, [other for other in found if other not in specs])
    return f"{near} {has}" if near else has


def _near(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def _listed(found: dict[str, tuple[str, int]]) -> str:
    return (
        ", ".join(f"{name!r} ({values_of(n, dtype)})" for name, (dtype, n) in found.items()) or "no features"
    )
