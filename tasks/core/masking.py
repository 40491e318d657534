"""Secrets in what a process says: replaced by `***` before anybody sees it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from tasks.core import durable_files

MASK = "***"


def masked(said: Any, values: Iterable[str]) -> Any:
    """Return what was said, JSON of any form, without the values, however URLs, JSON or Python write them."""
    if isinstance(said, str):
        for value in sorted(values, key=len, reverse=True):
            for form in _forms(value):
                said = said.replace(form, MASK)
        return said
    if isinstance(said, dict):
        return {key: masked(each, values) for key, each in said.items()}
    return [masked(each, values) for each in said] if isinstance(said, list) else said


def _forms(value: str) -> tuple[str, ...]:
    # Both ways to escape a slash and a space in a URL are common, and Python quotes by what it holds.
    urls = quote(value, safe=""), quote(value), quote_plus(value)
    return (value, *urls, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1],
            repr(value)[1:-1], repr(value.encode())[2:-1])  # fmt: skip


def mask_file(file: Path, values: Iterable[str]) -> None:
    """Mask the values in a file, if it holds any."""
    values = list(values)
    if values and file.is_file():
        text = file.read_text(errors="replace")
        if (without := masked(text, values)) != text:
            durable_files.write(file, without.encode(), synced=False)
