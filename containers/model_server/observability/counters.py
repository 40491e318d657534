"""Counters in memory that several processes can read: blocks of 64-bit integers, each under a key.

Every process writes one file of its own and reads those of all. A block stays where it is for good, so
that its owner counts without looking it up again; nothing is ever locked between processes.

A file is a sequence of blocks: the key's length in bytes, the number of integers, the key (JSON, padded
to 8 bytes), the integers. The length is written last: a reader sees whole blocks only.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

CAPACITY_BYTES = 16 * 2**20  # of address space; pages that nothing was written to take no memory
_WORD = 8
_HEADER_WORDS = 2

Key = Sequence[Any]


class CounterFile:
    """The counters of this process. `words` holds the integers; block() says where."""

    def __init__(self, path: Path | None = None, capacity_bytes: int = CAPACITY_BYTES) -> None:
        """Make the file anew; without a path the counters are seen by this process only."""
        descriptor = _descriptor(path, capacity_bytes)
        self._map = mmap.mmap(descriptor, capacity_bytes)
        os.close(descriptor)
        self.words = memoryview(self._map).cast("q")
        self._used = 0
        self._lock = threading.Lock()

    def block(self, key: Key, size: int) -> int | None:
        """Return the index of the first of `size` new integers, all 0; None when the file is full."""
        encoded = json.dumps(key).encode()
        key_words = -(-len(encoded) // _WORD)
        with self._lock:
            start = self._used
            first = start + _HEADER_WORDS + key_words
            if first + size > len(self.words):
                return None
            self._used = first + size
            offset = (start + _HEADER_WORDS) * _WORD
            self._map[offset : offset + len(encoded)] = encoded
            self.words[start + 1] = size
            self.words[start] = len(encoded)
            return first

    def blocks(self) -> Iterator[tuple[tuple[Any, ...], list[int]]]:
        """Every block's key and integers."""
        return _blocks(self.words, self._map)


def read(path: Path) -> list[tuple[tuple[Any, ...], list[int]]]:
    """Return the blocks in the file of any process; none where it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return []
    try:
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as mapped, memoryview(mapped).cast("q") as words:
            return list(_blocks(words, mapped))
    finally:
        os.close(descriptor)


def _descriptor(path: Path | None, size: int) -> int:
    descriptor = (
        os.memfd_create("counters")
        if path is None
        else os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    )
    os.ftruncate(descriptor, size)
    return descriptor


def _blocks(words: memoryview, raw: mmap.mmap) -> Iterator[tuple[tuple[Any, ...], list[int]]]:
    start = 0
    while start < len(words) and (length := words[start]):
        size = words[start + 1]
        offset = (start + _HEADER_WORDS) * _WORD
        first = start + _HEADER_WORDS + -(-length // _WORD)
        yield tuple(json.loads(raw[offset : offset + length])), words[first : first + size].tolist()
        start = first + size
