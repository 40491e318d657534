"""Secrets in what a process says: replaced by `***` before anybody sees it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tasks import durable_files

MASK = "***"


def masked(said: Any, values: Iterable[str]) -> Any:
    """Return what was said, JSON of any form, without the values, also as URLs and JSON write them."""
    if isinstance(said, str):
        for value in sorted(values, key=len, reverse=True):
            for form in (value, quote(value, safe=""), json.dumps(value)[1:-1]):
                said = said.replace(form, MASK)
        return said
    if isinstance(said, dict):
        return {key: masked(each, values) for key, each in said.items()}
    return [masked(each, values) for each in said] if isinstance(said, list) else said


def mask_file(file: Path, values: Iterable[str]) -> None:
    """Have the values in a file masked; one without them is left as it is."""
    values = list(values)
    if values and file.is_file():
        text = file.read_text(errors="replace")
        if (without := masked(text, values)) != text:
            durable_files.write(file, without.encode(), synced=False)
