"""Profiles of CSV files, without TensorFlow: what type each column's cells have, and what they hold.

Read as `tasks/examples/csv_examples.py` will read them at ingest: a header line, an empty cell or one of
pandas' words for it is a missing value, several values in a cell are separated by `;`.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import math
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TextIO

from configs.schema.data import MISSING_VALUES
from tasks.core.errors import DataError
from tasks.samples.profiles import MOST_EXAMPLES, MOST_WORDS, Dtype, FeatureProfile, Sample, Tally, Value

SEPARATOR = ";"
_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]{0,18})\Z")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\Z")
_MISPLACED_HEADER = "write a line with the columns' names before the first row"

Row = tuple[str, list[str]]
"""Where it is, and its cells."""


def profile(files: Sequence[Path]) -> Sample:
    """Return what the files hold. Raises DataError with file and line where one cannot be read."""
    header: list[str] = []
    rows: list[Row] = []
    encoding = _encoding(files[0])
    delimiter = _delimiter(files[0], encoding)
    for file in files:
        with _opened(file, encoding) as stream:
            found = _rows(file, stream, header, delimiter)
            rows.extend(islice(found, MOST_EXAMPLES + 1 - len(rows)))
    whole = len(rows) <= MOST_EXAMPLES
    rows = rows[:MOST_EXAMPLES]
    features: list[FeatureProfile] = []
    columns: dict[str, tuple[Value | None, ...]] = {}
    for index, name in enumerate(header):
        cells_of = [(place, cells[index]) for place, cells in rows]
        if (column := _column(name, cells_of)) is not None:
            features.append(column[0])
            columns[name] = column[1].column(len(rows))
    return Sample(
        tuple(files), "csv", "none", len(rows), whole, tuple(features), columns, delimiter, encoding
    )


def _encoding(file: Path) -> str:
    """Return the encoding that a file's first MB has, by Python's name: UTF-8 if it can be."""
    with file.open("rb") as stream:
        start = stream.read(1 << 20)
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return "cp1252"  # what spreadsheets on Windows write
    return "utf-8"


def _delimiter(file: Path, encoding: str) -> str:
    """Return what separates the names in the header: a comma, unless there is none."""
    with _opened(file, encoding) as stream, contextlib.suppress(UnicodeError):
        line = stream.readline()
        return next((mark for mark in (",", SEPARATOR, "\t", "|") if mark in line), ",")
    return ","


def _opened(file: Path, encoding: str) -> TextIO:
    with file.open("rb") as stream:
        if stream.read(2) == b"\x1f\x8b":
            raise DataError(f"{file}: gzipped: a CSV file is read as it is", "unpack it with gunzip")
    return file.open(encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline="")


def _rows(file: Path, stream: TextIO, header: list[str], delimiter: str) -> Iterator[Row]:
    """Yield the rows; `header` is filled by the first file, and that of every other must be the same."""
    reader = csv.reader(stream, strict=True, delimiter=delimiter)
    try:
        names = [name.strip() for name in next(reader, [])]
        _require_header(file, names, header)
        header[:] = names
        line, empty = reader.line_num + 1, True
        for cells in reader:
            if cells:
                empty = False
                yield _checked(f"{file}:{line}", cells, header)
            line = reader.line_num + 1
        if empty:
            raise DataError(f"{file}: a header, and no row", "give a sample that has some")
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: not valid CSV: {error}") from None
    except UnicodeDecodeError as error:
        message = f"{file}: not {stream.encoding.upper().removesuffix('-SIG')}: {error}"
        raise DataError(message, "save it as UTF-8") from None


def _checked(place: str, cells: list[str], header: list[str]) -> Row:
    if len(cells) != len(header):
        message = f"{place}: expected {len(header)} cells, as in the header, found {len(cells)}"
        raise DataError(message, "quote cells that hold a comma or a line break")
    return place, cells


def _require_header(file: Path, names: list[str], before: list[str]) -> None:
    if not any(names):
        raise DataError(f"{file}: empty: expected a header line with the names of the columns")
    for number, name in enumerate(names, start=1):
        if not name:
            raise DataError(f"{file}:1: column {number} has no name", "give it one")
        if names.count(name) > 1:
            raise DataError(f"{file}:1: column {name!r} is there {names.count(name)} times", "rename one")
    if all(map(_NUMBER.match, names)):
        raise DataError(f"{file}:1: expected a header, found only numbers", _MISPLACED_HEADER)
    if before and names != before:
        message = f"{file}:1: the columns are {', '.join(names)}; those of the first file {', '.join(before)}"
        raise DataError(message, "give samples of one kind")


def _column(name: str, cells: Sequence[tuple[str, str]]) -> tuple[FeatureProfile, Tally] | None:
    """Return the profile of a column, and its tally; None where every cell is empty."""
    filled = [(place, cell) for place, cell in cells if cell not in MISSING_VALUES]
    if not filled:
        return None
    dtype, several, note = _type_of(filled)
    tally = Tally(name, dtype, note)
    for index, (_, cell) in enumerate(cells):
        if cell not in MISSING_VALUES:
            tally.add(_values(cell, dtype, several), index)
    return tally.profile(next((place for place, cell in cells if cell in MISSING_VALUES), "")), tally


def _type_of(cells: Sequence[tuple[str, str]]) -> tuple[Dtype, bool, str]:
    """Return the dtype, whether a cell holds several values, and what spoke against a number."""
    lists = any(SEPARATOR in cell for _, cell in cells)
    dtype, stranger = _narrowest(cells, lists)
    if dtype != "string":
        return dtype, lists, ""
    note = ""
    strangers = sum(1 for _, cell in cells if not _all_match(_NUMBER, cell, lists))
    if 0 < strangers * 2 < len(cells):
        # Most are numbers: a word for "missing", or a slip.
        place, cell = stranger
        odd = f"numbers, but for {strangers:,}: {cell!r} in {Path(place).name}"
        note = f"{odd}: empty the cell if it is missing, or correct it"
    return "string", lists and _are_words(cells), note


def _narrowest(cells: Sequence[tuple[str, str]], lists: bool) -> tuple[Dtype, tuple[str, str]]:
    """Return the narrowest dtype that takes all cells, and the first cell that is no number."""
    dtype: Dtype = "int64"
    for place, cell in cells:
        if not _all_match(_NUMBER, cell, lists):
            return "string", (place, cell)
        if dtype == "int64" and not (_all_match(_INTEGER, cell, lists) and _fit(cell, lists)):
            if _is_code(cell, lists):
                return "string", (place, cell)
            dtype = "float32"
    return dtype, ("", "")


def _parts(cell: str, lists: bool) -> list[str]:
    return cell.split(SEPARATOR) if lists else [cell]


def _all_match(pattern: re.Pattern[str], cell: str, lists: bool) -> bool:
    return all(map(pattern.match, _parts(cell, lists)))


def _fit(cell: str, lists: bool) -> bool:
    return all(-(2**63) <= int(part) < 2**63 for part in _parts(cell, lists))


def _is_code(cell: str, lists: bool) -> bool:
    """Say whether a number is written as only codes are, with zeros in front: `00123`."""
    return any(part.isdigit() and part[0] == "0" and len(part) > 1 for part in _parts(cell, lists))


def _are_words(cells: Sequence[tuple[str, str]]) -> bool:
    """Say whether `;` separates words of a small vocabulary, and is not punctuation in a text."""
    words = {word for _, cell in cells for word in cell.split(SEPARATOR)}
    return len(words) <= MOST_WORDS and not any(word != word.strip() or " " in word for word in words)


def _values(cell: str, dtype: Dtype, several: bool) -> list[Value]:
    parts = _parts(cell, several)
    if dtype == "string":
        return list(parts)
    return [int(part) if dtype == "int64" else _float(part) for part in parts]


def _float(text: str) -> float:
    number = float(text)
    return number if abs(number) <= 3.4028235e38 else math.copysign(math.inf, number)  # noqa: PLR2004 (FLT_MAX)
