"""Rows of Parquet files as tf.Examples: the column of a feature's name holds its value, or a list of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.schema.features import FeatureSpec, FeatureSpecs
from tasks.core.errors import DataError
from tasks.examples import parquet_files
from tasks.examples.csv_examples import INT64, may_be_missing, require_column, values_of
from tasks.examples.parquet_files import Column
from tasks.examples.tf_examples import serialize


def records(
    file: Path, specs: FeatureSpecs, missing_values: Sequence[str]
) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the number of the first row, from 1, and serialized tf.Examples of it and some that follow.

    A null, an empty list and text that is one of `missing_values` are a missing feature: its default, no
    values, or an error. Raises DataError with file, row and column.
    """
    missing = frozenset(word.encode() for word in missing_values)
    with parquet_files.opened(file) as (stream, columns):
        used = _matched(file, columns, specs)
        for first, batch in parquet_files.batches(stream, used):
            converted = {
                column.name: _converted(f"{file}: row", first, column, batch, specs[column.name], missing)
                for column in used
            }
            yield first, [_serialized(index, converted, specs) for index in range(batch.num_rows)]


def _serialized(index: int, converted: Mapping[str, list[list[Any] | None]], specs: FeatureSpecs) -> bytes:
    found = {name: rows[index] for name, rows in converted.items()}
    return serialize({name: row for name, row in found.items() if row is not None}, specs)


def _matched(file: Path, columns: Sequence[Column], specs: FeatureSpecs) -> list[Column]:
    """Return the columns of the features. Raises DataError if one is not there, or of another type."""
    names = [column.name for column in columns]
    for name, spec in specs.items():
        require_column(str(file), "file", name, names, specs)
        for column in columns:
            if column.name == name:
                _require_type(f"{file}: column {name!r}", column, spec)
    return [column for column in columns if column.name in specs]


def _require_type(place: str, column: Column, spec: FeatureSpec) -> None:
    if spec.dtype not in column.dtypes:
        message = f"{place}: expected {spec.dtype}, found {column.type}"
        raise DataError(message, _type_hint(column, spec))
    if spec.kind == "fixed_len" and column.is_list and not spec.shape:
        message = f"{place}: expected {values_of(1, spec.dtype)}, found {column.type}"
        raise DataError(message, f"give the feature a shape, or `{spec.dtype}[]` for any number of values")
    if spec.kind == "fixed_len" and column.length not in (None, spec.size):
        message = f"{place}: expected {values_of(spec.size, spec.dtype)} a row, found {column.type}"
        raise DataError(message, "change the feature's shape, or the column")


def _type_hint(column: Column, spec: FeatureSpec) -> str:
    if column.dtypes == ("float32",) and spec.dtype == "int64":
        return "set float32; pandas writes integers with gaps as double, unless they are Int64"
    if column.dtypes:
        return f"set {column.dtypes[0]} in the YAML, or convert the column"
    return "write it as numbers, text, dates, or flat lists of them"


def _converted(
    place: str, first: int, column: Column, batch: Any, spec: FeatureSpec, missing: frozenset[bytes]
) -> list[list[Any] | None]:
    """Return the values of each row; None for a missing feature."""
    import pyarrow

    array = batch.column(column.name)
    try:
        values = column.values(array, spec.dtype)
    except pyarrow.ArrowInvalid:
        _raise_for_large_integers(place, first, column, array)
        raise
    rows: list[list[Any] | None] = []
    for number, value in enumerate(values, start=first):
        row = value if column.is_list or value is None else [value]
        if row is not None and None in row:
            message = f"{place} {number:,}: column {column.name!r}: found a null among {len(row)} values"
            raise DataError(message, "leave it out of the list, or fill it")
        if not row or (missing and len(row) == 1 and row[0] in missing):
            row = None
            if not may_be_missing(spec):
                found = "null" if value is None else repr(value)
                message = f"{place} {number:,}: column {column.name!r}: expected "
                raise DataError(
                    f"{message}{values_of(spec.size, spec.dtype)}, found {found}, and there is no default",
                    "give the feature a 'default' in the YAML, or fill the value",
                )
        rows.append(row)
    return rows


def _raise_for_large_integers(place: str, first: int, column: Column, array: Any) -> None:
    for number, value in enumerate(array.to_pylist(), start=first):
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, int) and each not in INT64:
                message = f"{place} {number:,}: column {column.name!r}: expected int64, found {each}"
                raise DataError(f"{message}, which has more than 64 bits", "write it as text")
