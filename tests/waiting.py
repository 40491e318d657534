"""Waiting for what another process does: asked again and again, with a deadline, never slept for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(look: Callable[[], T], seconds: float = 60.0, every: float = 0.05) -> T:
    """Return the first truthy answer of `look`; fail with the last one at the deadline."""
    ends = time.monotonic() + seconds
    while not (answer := look()):
        assert time.monotonic() < ends, f"not within {seconds:g} s: {look} said {answer!r}"
        time.sleep(every)
    return answer
