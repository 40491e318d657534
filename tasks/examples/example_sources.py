"""Where serialized tf.Examples come from: TFRecord files, or CSV and Parquet by the feature spec."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from configs.schema.features import FeatureSpecs
from configs.schema.pipeline import DataConfig
from tasks.core.errors import DataError
from tasks.examples import parquet_examples
from tasks.examples.csv_examples import CsvConverter

BATCH = 1024


@dataclass(frozen=True)
class Batch:
    """Serialized examples of one file, and where in it each of them is."""

    file: Path
    records: Sequence[bytes]
    numbers: Sequence[int]
    """Record numbers from 1 in a TFRecord file; line numbers in CSV; row numbers from 1 in Parquet."""
    unit: str = "record"

    def place(self, index: int) -> str:
        """Return where the example at `index` is: `digits.tfrecord: record 17`."""
        return f"{self.file}: {self.unit} {self.numbers[index]:,}"


def tfrecord_batches(file: Path, compression: str) -> Iterator[Batch]:
    """Yield the records of a TFRecord file. Raises DataError after the last one that could be read."""
    options = "GZIP" if compression == "gzip" else ""
    first = 1
    try:
        for records in tf.data.TFRecordDataset(str(file), options).batch(BATCH).as_numpy_iterator():
            yield Batch(file, records, range(first, first + len(records)))
            first += len(records)
    except (tf.errors.DataLossError, tf.errors.OutOfRangeError) as error:
        raise _corrupt(file, options, error) from None


def _corrupt(file: Path, options: str, error: Exception) -> DataError:
    good = _readable(file, options)
    reason = str(error).split(" [Op:")[0].split("{{")[-1].split("}} ")[-1]
    message = f"{file}: corrupt TFRecord after record {good:,}: {reason}"
    if good == 0 and (advice := _compression_advice(file, options)):
        return DataError(message, advice)
    return DataError(message, "write the file again; training on part of it could go unnoticed")


def _readable(file: Path, options: str) -> int:
    """Count the records before the first that cannot be read."""
    good = 0
    try:
        for _ in tf.data.TFRecordDataset(str(file), options):
            good += 1
    except tf.errors.OpError:
        pass
    return good


def _compression_advice(file: Path, options: str) -> str:
    with file.open("rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    if zipped and not options:
        return "the file is gzipped: set data.compression: gzip"
    if options and not zipped:
        return "the file is not gzipped: remove data.compression"
    return ""


def csv_batches(file: Path, specs: FeatureSpecs, data: DataConfig) -> Iterator[Batch]:
    """Yield the rows of a CSV file as serialized examples. Raises DataError with file, line and column."""
    encoding = "utf-8-sig" if data.encoding.lower() in ("utf-8", "utf8") else data.encoding
    try:
        with file.open(encoding=encoding, newline="") as stream:
            yield from _converted(file, stream, specs, data)
    except UnicodeError as error:
        hint = "save it as UTF-8, or name its encoding in data.encoding (latin-1, cp1252, utf-16)"
        raise DataError(f"{file}: not {data.encoding.upper()}: {error}", hint) from None


def _converted(file: Path, stream: Iterator[str], specs: FeatureSpecs, data: DataConfig) -> Iterator[Batch]:
    reader = csv.reader(stream, strict=True, delimiter=data.delimiter)
    try:
        header = next(reader, [])
        _require_delimiter(file, header, data)
        converter = CsvConverter(file, header, specs, frozenset(data.missing_words))
        while rows := list(itertools.islice(_numbered(reader), BATCH)):
            records = [converter.serialize(line, cells) for line, cells in rows]
            yield Batch(file, records, [line for line, _ in rows], unit="line")
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: not valid CSV: {error}") from None


def _require_delimiter(file: Path, header: Sequence[str], data: DataConfig) -> None:
    """Raise DataError for a header that another delimiter than `data.delimiter` would split."""
    other = [mark for mark in (",", ";", "\t", "|") if mark != data.delimiter and mark in "".join(header)]
    if len(header) == 1 and other:
        message = f"{file}:1: expected cells between {data.delimiter!r}, found one column {header[0]!r}"
        raise DataError(message, f"set data.delimiter to {other[0]!r}")


def _numbered(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank with the line that it begins in."""
    while True:
        line = reader.line_num + 1
        row = next(reader, None)
        if row is None:
            return
        if row:
            yield line, row


def parquet_batches(file: Path, specs: FeatureSpecs, data: DataConfig) -> Iterator[Batch]:
    """Yield the rows of a Parquet file as serialized examples. Raises DataError with file, row and column."""
    for first, records in parquet_examples.records(file, specs, data.missing_words):
        yield Batch(file, records, range(first, first + len(records)), unit="row")
