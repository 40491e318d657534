"""CSV rows as tf.Examples: the column of a feature's name holds its values, separated by `;`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.schema.data import MISSING_VALUES
from configs.schema.features import FeatureSpec, FeatureSpecs
from tasks.core.errors import DataError
from tasks.examples.tf_examples import serialize

SEPARATOR = ";"
INT64 = range(-(2**63), 2**63)


class CsvConverter:
    """Turns rows of one CSV file into serialized tf.Examples.

    A cell of a scalar feature is one value; of any other, values separated by `;`. A cell that is one of
    `missing_values` is a missing feature: its default, or no values, or an error. Columns that name no
    feature are ignored.
    """

    def __init__(
        self, file: Path, header: Sequence[str], specs: FeatureSpecs,
        missing_values: frozenset[str] = frozenset(MISSING_VALUES),
    ) -> None:  # fmt: skip
        self._missing_values = missing_values
        self._file, self._header, self._specs = file, [name.strip() for name in header], specs
        self._refuse_bad_header()
        self._columns = [(self._header.index(name), name) for name in specs if name in self._header]

    def _refuse_bad_header(self) -> None:
        if not self._header:
            raise DataError(f"{self._file}: empty: expected a header line with the names of the columns")
        for name in self._specs:
            require_column(f"{self._file}:1", "header", name, self._header, self._specs)

    def serialize(self, line: int, cells: Sequence[str]) -> bytes:
        """Return the tf.Example of the row that begins in `line`. Raises DataError with its place."""
        if len(cells) != len(self._header):
            expected = f"expected {len(self._header)} cells, as in the header, found {len(cells)}"
            raise DataError(
                f"{self._file}:{line}: {expected}", "quote cells that hold a comma or a line break"
            )
        values = {}
        for index, name in self._columns:
            try:
                parsed = parse_cell(cells[index], self._specs[name], self._missing_values)
            except ValueError as error:
                raise DataError(
                    f"{self._file}:{line}: column {name!r}: {error}",
                    _hint(cells[index] in self._missing_values),
                ) from None
            if parsed is not None:
                values[name] = parsed
        return serialize(values, self._specs)


def _hint(missing: bool) -> str:
    return (
        "give the feature a 'default' in the YAML, fill the cell, or see data.missing_values"
        if missing
        else ""
    )


def require_column(place: str, holder: str, name: str, columns: Sequence[str], specs: FeatureSpecs) -> None:
    """Raise DataError if the column of a feature is not there and must be, or is there twice."""
    if columns.count(name) > 1:
        raise DataError(f"{place}: column {name!r} is there {columns.count(name)} times", "rename one")
    if name in columns:
        return
    near = difflib.get_close_matches(name, [column for column in columns if column not in specs], n=1)
    if near or not may_be_missing(specs[name]):
        message = f"{place}: no column {name!r}: the {holder} has {', '.join(columns)}"
        raise DataError(
            message, f"did you mean {near[0]!r}?" if near else "rename it in the file or in the YAML"
        )


def may_be_missing(spec: FeatureSpec) -> bool:
    """Return whether an example may lack the feature."""
    return spec.kind != "fixed_len" or spec.default is not None


def parse_cell(
    cell: str, spec: FeatureSpec, missing_values: frozenset[str] = frozenset(MISSING_VALUES)
) -> list[float] | list[int] | list[bytes] | None:
    """Return the values of a cell; None if it is missing and may be. Raises ValueError."""
    if cell in missing_values:
        if may_be_missing(spec):
            return None
        found = f"the missing value {cell!r}" if cell else "an empty cell"
        raise ValueError(
            f"expected {values_of(spec.size, spec.dtype)}, found {found}, and there is no default"
        )
    scalar = spec.kind == "fixed_len" and not spec.shape
    texts = [cell] if scalar else cell.split(SEPARATOR)
    if spec.kind == "fixed_len" and len(texts) != spec.size:
        raise ValueError(f"expected {values_of(spec.size, spec.dtype)}, found {len(texts)} in {cell!r}")
    return _PARSERS[spec.dtype](texts)


def values_of(count: int, dtype: str) -> str:
    """Return the number and type of values: `64 float32 values`."""
    return f"{count:,} {dtype} value{'' if count == 1 else 's'}"


def _floats(texts: list[str]) -> list[float]:
    return [float(_number(text, "float32")) for text in texts]


def _integers(texts: list[str]) -> list[int]:
    return [int(_number(text, "int64")) for text in texts]


def _number(text: str, dtype: str) -> float | int:
    try:
        if "_" in text:
            raise ValueError  # Python's 1_000 is no number in CSV
        number = int(text) if dtype == "int64" else float(text)
    except ValueError:
        raise ValueError(f"expected {dtype}, found {text!r}") from None
    if isinstance(number, int) and number not in INT64:
        raise ValueError(f"expected {dtype}, found {text}, which has more than 64 bits")
    return number


def _strings(texts: list[str]) -> list[bytes]:
    return [text.encode() for text in texts]


_PARSERS: Mapping[str, Callable[[list[str]], list[Any]]] = {
    "float32": _floats,
    "int64": _integers,
    "string": _strings,
}
