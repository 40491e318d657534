"""What is made once for a run of pytest, by the first of its workers that needs it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

T = TypeVar("T")

SHARED = "SLIPWAY_TESTS_SHARED"
"""The environment variable with the folder that all workers share; tests/conftest.py sets it."""


def made_once(name: str, make: Callable[[Path], T]) -> T:
    """Return the result of `make`, which may write to its folder; it is called once for all workers."""
    folder = Path(os.environ[SHARED]) / name
    result = folder / "made.pickle"
    with FileLock(folder.with_suffix(".lock")):
        if not result.is_file():
            folder.mkdir(exist_ok=True)
            result.write_bytes(pickle.dumps(make(folder)))
        made: T = pickle.loads(result.read_bytes())
        return made
