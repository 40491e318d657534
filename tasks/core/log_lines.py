"""Lines of a log that somebody should see: warnings, errors, and what a server says; told from noise.

Understood are the formats of Python's logging (`WARNING:tensorflow:…`), of TensorFlow's C++ side and of
TensorFlow Serving (`2026-11-22 03:00:00.123456: W tensorflow/…`), of glog (`W1122 03:00:00.123456 …`), of
Python's warnings (`file.py:7: UserWarning: …`), and of Slipway's server (`2026-11-22T03:00:00.123 WARNING …`,
or a JSON object).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

MOST_FORWARDED = 20
"""Lines of one log that are forwarded; the rest is counted, and stays in the file."""
_LONGEST = 500

_LEVELS = {
    "I": logging.INFO, "INFO": logging.INFO,
    "W": logging.WARNING, "WARN": logging.WARNING, "WARNING": logging.WARNING,
    "E": logging.ERROR, "ERROR": logging.ERROR,
    "F": logging.CRITICAL, "FATAL": logging.CRITICAL, "CRITICAL": logging.CRITICAL,
}  # fmt: skip
_FORMS = tuple(
    re.compile(form)
    for form in (
        r"^(INFO|WARNING|ERROR|CRITICAL):[\w.]+:",
        r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: ([IWEF]) ",
        r"^([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ ",
        r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,]?\d*Z? (INFO|WARNING|ERROR|CRITICAL) ",
    )
)
_PYTHON_WARNING = re.compile(r"^\S+:\d+: (\w*Warning): ")
_NOISE = re.compile(
    # What machines without a GPU are told of CUDA …
    r"cuda|cudnn|cufft|cublas|tensorrt|TF-TRT|libnvinfer|"
    # … what TensorFlow says of its own functions to whoever uses Estimators …
    r"deprecat|is experimental and may change|Using temporary folder as model directory|"
    r"tf\.data options across serialization boundaries|"
    # … and what it optimises.
    r"oneDNN custom operations|rebuild TensorFlow with the appropriate compiler flags|Type inference failed",
    re.IGNORECASE,
)

Take = Callable[[int, str], None]


def level(line: str, least: int = logging.WARNING) -> int | None:
    """Return the level (of `logging`) that a line should be seen at; None where it need not be seen."""
    found = _stated(line)
    return None if found is None or found < least or _NOISE.search(line) else found


def _stated(line: str) -> int | None:
    for form in _FORMS:
        if match := form.match(line):
            return _LEVELS[match.group(1)]
    if match := _PYTHON_WARNING.match(line):
        quiet = ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")
        return None if match.group(1) in quiet else logging.WARNING
    return _of_json(line) if line.startswith("{") else None


def _of_json(line: str) -> int | None:
    try:
        told = json.loads(line)
        return _LEVELS.get(str(told.get("severity", told.get("level", ""))).upper())
    except ValueError:
        return None


class Forwarded:
    """A log file that grows: what is worth seeing of it is handed on as it appears, once each."""

    def __init__(self, file: Path, take: Take, masked: Callable[[str], str] = str) -> None:
        """Start at the current end of the file, which need not exist yet.

        `masked` returns a text without its secrets.
        """
        self._file, self._take, self._masked = file, take, masked
        self._position = file.stat().st_size if file.is_file() else 0
        self._seen: set[str] = set()
        self._forwarded = self._left_out = 0

    def look(self) -> None:
        """Hand on what has come since the last look; a line that is not complete waits."""
        try:
            with self._file.open("rb") as log:
                log.seek(self._position)
                new = log.read()
        except OSError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._position += len(whole)
        # Masked before it is cut, into lines and to their length: half a secret is not known for one.
        for line in self._masked(whole.decode(errors="replace")).splitlines():
            self._consider(line)

    def close(self) -> None:
        """Read the remaining lines, and report how many were left out."""
        self.look()
        if self._left_out:
            self._take(logging.WARNING, f"{self._left_out} more such lines are in {self._file}")
            self._left_out = 0

    def _consider(self, line: str) -> None:
        found = level(line)
        same = re.sub(r"\d+", "#", line)
        if found is None or same in self._seen:
            return
        if self._forwarded >= MOST_FORWARDED:
            self._left_out += 1
            return
        self._seen.add(same)
        self._forwarded += 1
        self._take(found, line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…")


def seen(text: str, take: Take) -> None:
    """Hand on a server's log, what it says too; where that is too much, only warnings and errors."""
    lines = [(found, line) for line in text.splitlines() if (found := level(line, logging.INFO)) is not None]
    important = [(found, line) for found, line in lines if found >= logging.WARNING]
    kept = lines if len(lines) <= MOST_FORWARDED else important[:MOST_FORWARDED]
    for found, line in kept:
        take(found, line[:_LONGEST])
    if len(lines) > len(kept):
        most = logging.WARNING if len(important) > len(kept) else logging.INFO
        take(most, f"{len(lines) - len(kept)} more lines were printed")
