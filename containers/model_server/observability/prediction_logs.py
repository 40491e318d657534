"""TFRecords of PredictionLog, the form of warmup files and request logs, without TensorFlow's public API.

What of TensorFlow's Python this needs is imported with the first file: most servers never see one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

# As many as a warmup file may hold (WarmupConsts::kMaxNumRecords).
MAX_RECORDS = 1000


def records(path: Path) -> Iterator[bytes]:
    """Yield the records of a file. Raises TensorFlow's DataLossError where it is none, or cut off."""
    from tensorflow.python.lib.io import _pywrap_record_io

    yield from _pywrap_record_io.RecordIterator(str(path), "")


class RecordWriter:
    """Writes a new file that only this user can read. Raises FileExistsError where there is one."""

    def __init__(self, path: Path) -> None:
        from tensorflow.python.lib.io import _pywrap_record_io

        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600, exist_ok=False)
        options = _pywrap_record_io.RecordWriterOptions("")
        self._writer: Any = _pywrap_record_io.RecordWriter(str(path), options)

    def write(self, record: bytes) -> None:
        """Append one record."""
        self._writer.write(record)

    def flush(self) -> None:
        """Let readers see all that was written."""
        self._writer.flush()

    def close(self) -> None:
        """Write what is buffered and close the file."""
        self._writer.close()
