"""The number of the routing table in force, in memory that all processes of a server share."""

from __future__ import annotations

import mmap
import os

_BYTES = 8


class Generation:
    """One number. Writing it is one store of eight bytes: every process sees the old one or the new one."""

    def __init__(self, descriptor: int | None = None) -> None:
        """Share the memory behind a descriptor of another Generation, or make it."""
        self.descriptor = os.memfd_create("generation") if descriptor is None else descriptor
        if descriptor is None:
            os.ftruncate(self.descriptor, _BYTES)
        self._words = memoryview(mmap.mmap(self.descriptor, _BYTES)).cast("q")

    @property
    def number(self) -> int:
        """The generation in force."""
        return int(self._words[0])

    @number.setter
    def number(self, number: int) -> None:
        self._words[0] = number
