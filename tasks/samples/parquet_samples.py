"""Profiles of Parquet files, without TensorFlow: what type each column has, and what it holds.

Read as `tasks/examples/parquet_examples.py` will read them at ingest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.core.errors import DataError
from tasks.examples import parquet_files
from tasks.examples.parquet_files import Column
from tasks.samples.profiles import MOST_EXAMPLES, Sample, Tally


def profile(files: Sequence[Path]) -> Sample:
    """Return what the files hold. Raises DataError with file, row and column where one cannot be read."""
    tallies: dict[str, _Found] = {}
    types: dict[str, str] = {}
    count, whole = 0, True
    for file in files:
        with parquet_files.opened(file) as (stream, columns):
            found = {column.name: str(column.type) for column in columns}
            if types and found != types:
                odd = sorted(set(found.items()) ^ set(types.items()))[0][0]
                message = f"{file}: column {odd!r}: expected {types.get(odd, 'none')} as in {files[0]}, "
                raise DataError(f"{message}found {found.get(odd, 'none')}", "give samples of one kind")
            types = found
            for column in columns:
                tallies.setdefault(column.name, _Found(column))
            for first, batch in parquet_files.batches(stream, columns):
                left = MOST_EXAMPLES - count
                whole = whole and batch.num_rows <= left
                rows = min(left, batch.num_rows)
                for column in columns:
                    tallies[column.name].add(batch.column(column.name)[:rows], f"{file}: row", first, count)
                count += rows
                if not whole:
                    break
    if not count:
        raise DataError(f"{files[0]}: no row in it", "give a sample that has some")
    kept = [found for found in tallies.values() if found.tally.present]
    return Sample(
        tuple(files), "parquet", "none", count, whole,
        tuple(found.tally.profile(found.first_missing) for found in kept),
        {found.tally.name: found.tally.column(count) for found in kept},
    )  # fmt: skip


class _Found:
    """A column: its tally, and where a value was missing first."""

    def __init__(self, column: Column) -> None:
        self.column, self.first_missing = column, ""
        self.readable = bool(column.dtypes)
        note = "" if self.readable else f"{column.type}: features are numbers, text, dates, or lists of them"
        self.tally = Tally(column.name, column.dtypes[0] if self.readable else "string", note)

    def add(self, array: Any, place: str, first: int, count: int) -> None:
        if not self.readable:
            self.tally.add([""])
            return
        for offset, row in enumerate(self.column.values(array, self.tally.dtype)):
            values = row if isinstance(row, list) else [row]
            if row is None or not values:
                self.first_missing = self.first_missing or f"{place} {first + offset:,}"
            elif None in values:
                message = f"{place} {first + offset:,}: column {self.column.name!r}: found a null in a list"
                raise DataError(message, "leave it out of the list, or fill it")
            else:
                self.tally.add(values, count + offset)
