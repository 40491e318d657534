"""The traceback of a defect, in a file that the error names: what a person can send to those who mend it."""

from __future__ import annotations

import traceback
from pathlib import Path

from configs.loading.errors import SlipwayError

NAME = "traceback.txt"


def is_defect(error: BaseException) -> bool:
    """Return whether an error is none that Slipway raises, nor an interruption."""
    return isinstance(error, Exception) and not isinstance(error, SlipwayError)


def write(error: BaseException, file: Path) -> Path | None:
    """Write a defect's traceback and return the file; None for other errors, or if it cannot be written."""
    if not is_defect(error):
        return None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(traceback.format_exception(error)))
    except OSError:
        return None  # a full disk must not hide the error itself
    return file
