"""Parquet files, read by pyarrow, without TensorFlow: the types of columns, batches of rows."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tasks.core.errors import DataError, EnvironmentFault

Dtype = Literal["float32", "int64", "string"]

_BUFFER_BYTES = 1 << 20
_ROWS = 1024


@dataclass(frozen=True)
class Column:
    """A column of a Parquet file."""

    name: str
    type: Any
    """As pyarrow has it: list<item: double>."""

    @property
    def is_list(self) -> bool:
        """Whether a row has a list of values."""
        import pyarrow

        kinds = pyarrow.types
        return bool(
            kinds.is_list(self.type) or kinds.is_large_list(self.type) or kinds.is_fixed_size_list(self.type)
        )

    @property
    def length(self) -> int | None:
        """Values in every row; None if rows may differ."""
        import pyarrow

        if not self.is_list:
            return 1
        return self.type.list_size if pyarrow.types.is_fixed_size_list(self.type) else None

    @property
    def _element(self) -> Any:
        import pyarrow

        element = self.type.value_type if self.is_list else self.type
        return element.value_type if pyarrow.types.is_dictionary(element) else element

    @property
    def dtypes(self) -> tuple[Dtype, ...]:
        """What a feature of this column may be, the nearest first; none for other types."""
        import pyarrow

        kinds, element = pyarrow.types, self._element
        if kinds.is_integer(element) or kinds.is_boolean(element):
            return ("int64", "float32")
        if kinds.is_floating(element) or kinds.is_decimal(element):
            return ("float32",)
        if kinds.is_date(element) or kinds.is_timestamp(element) or _is_text(element):
            return ("string",)
        return ()

    def values(self, array: Any, dtype: Dtype) -> list[Any]:
        """Return the values of a batch, row by row, as Python has them: text as bytes, a null as None.

        Raises pyarrow.ArrowInvalid for an integer beyond int64.
        """
        import pyarrow

        element = self._element
        if array.type != self.type:
            raise TypeError(f"expected {self.type}, found {array.type}")
        steps = [element]  # decodes a dictionary
        if dtype == "string" and not _is_binary(element):
            steps += [pyarrow.large_string()]
        steps += [_TARGETS[dtype](pyarrow)]
        for step in steps:
            array = array.cast(pyarrow.large_list(step) if self.is_list else step, safe=dtype == "int64")
        return list(array.to_pylist())


_TARGETS = {
    "float32": lambda pyarrow: pyarrow.float64(),  # protobuf rounds to float32, as it does for CSV
    "int64": lambda pyarrow: pyarrow.int64(),
    "string": lambda pyarrow: pyarrow.large_binary(),
}


def _is_binary(element: Any) -> bool:
    from pyarrow import types

    return bool(
        types.is_binary(element)
        or types.is_large_binary(element)
        or types.is_fixed_size_binary(element)
        or types.is_binary_view(element)
    )


def _is_text(element: Any) -> bool:
    from pyarrow import types

    strings = types.is_string(element) or types.is_large_string(element) or types.is_string_view(element)
    return bool(strings or _is_binary(element))


def require_pyarrow() -> None:
    """Raise EnvironmentFault if pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        hint = "run `make install-parquet`, or install the packages of requirements-parquet.lock"
        raise EnvironmentFault("Parquet files need pyarrow, which is not installed", hint)


@contextmanager
def opened(file: Path) -> Iterator[tuple[Any, list[Column]]]:
    """Open a file; the context is pyarrow's ParquetFile and its columns. Raises DataError if it is none."""
    require_pyarrow()
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        # Unlike pre_buffer, which reads a whole row group, this holds a page of each column.
        with ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False) as stream:  # type: ignore[no-untyped-call]
            yield stream, [Column(field.name, field.type) for field in stream.schema_arrow]
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file}: cannot be read as Parquet: {reason}", "write the file again") from error


def batches(stream: Any, columns: Sequence[Column]) -> Iterator[tuple[int, Any]]:
    """Yield the number of the first row, from 1, and up to 1,024 rows as a pyarrow.RecordBatch."""
    first = 1
    for batch in stream.iter_batches(_ROWS, columns=[column.name for column in columns]):
        yield first, batch
        first += batch.num_rows
