"""The deterministic split of tonight's examples into train, eval and sample, by a hash."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import tensorflow as tf

from configs.schema.pipeline import SplitConfig
from tasks.core.artifacts import Examples, Split
from tasks.core.errors import DataError

SHARDS = {"train": 4, "eval": 1, "sample": 1}


class SplitWriter:
    """Writes examples to the split that their hash says; nothing is at `folder` before `finish()`.

    Which split depends on the hash of an example (or of its key) alone: not on the order of files, nor
    on the other examples, and duplicates land together. A killed writer leaves `<folder>.partial`.
    """

    def __init__(self, folder: Path, split: SplitConfig) -> None:
        self._folder, self._config = folder, split
        self.partial = folder.with_suffix(".partial")
        """What appears at `folder` at last; anything else may be put there too."""
        self._counts = dict.fromkeys(SHARDS, 0)
        self.bytes = 0
        """Size of the examples added so far."""
        self._first_digest: bytes | None = None
        self._all_alike = True
        self._sum_of_hashes = 0
        self._writers: dict[str, list[Any]] = {}

    def __enter__(self) -> SplitWriter:
        """Make the partial folder and open every shard in it."""
        self.partial.mkdir(parents=True)
        self._writers = {
            name: [tf.io.TFRecordWriter(str(self.partial / _shard(name, i))) for i in range(shards)]
            for name, shards in SHARDS.items()
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what is not finished."""
        if self.partial.exists():
            self._close()
            shutil.rmtree(self.partial)

    @property
    def total(self) -> int:
        """Number of examples added so far."""
        return sum(self._counts.values())

    def add(self, records: Sequence[bytes], keys: Sequence[bytes] | None) -> None:
        """Write serialized examples; those with the same key (by default: the example) share a split."""
        for index, record in enumerate(records):
            digest = hashlib.sha256(record).digest()
            self.bytes += len(record)
            self._first_digest = self._first_digest or digest
            self._all_alike = self._all_alike and digest == self._first_digest
            self._sum_of_hashes += int.from_bytes(digest, "big")
            self._write(record, digest if keys is None else hashlib.sha256(keys[index]).digest())

    def _write(self, record: bytes, digest: bytes) -> None:
        name = self._split_of(int.from_bytes(digest[:8], "big") / 2**64)
        self._counts[name] += 1
        writers = self._writers[name]
        writers[digest[8] % len(writers)].write(record)

    def _split_of(self, fraction: float) -> str:
        if fraction < self._config.eval:
            return "eval"
        return "sample" if fraction < self._config.eval + self._config.sample else "train"

    def finish(self, seconds: float) -> Examples:
        """Make all splits appear at once. Raises DataError where one is empty."""
        self._close()
        self._refuse_empty()
        os.rename(self.partial, self._folder)
        splits = {
            name: Split(tuple(self._folder / _shard(name, i) for i in range(shards)), self._counts[name])
            for name, shards in SHARDS.items()
        }
        return Examples(**splits, digest=self._digest(), seconds=seconds)

    def _close(self) -> None:
        for writer in (writer for writers in self._writers.values() for writer in writers):
            writer.close()
        self._writers = {}

    def _refuse_empty(self) -> None:
        if self.total > 1 and self._all_alike:
            message = (
                f"all {self.total:,} examples are alike, byte for byte: there is nothing to learn from them"
            )
            raise DataError(message, "look at what wrote them: data.ingest, or data.files")
        for name, count in self._counts.items():
            if count == 0:
                counts = ", ".join(f"{count} {split}" for split, count in self._counts.items())
                message = f"the {name} split is empty: {self.total} example(s) were split into {counts}"
                raise DataError(message, self._remedy(name))

    def _remedy(self, name: str) -> str:
        shares = f"eval {self._config.eval:g}, sample {self._config.sample:g}"
        if name == "train":
            return f"lower data.split.eval or data.split.sample (now {shares}), or bring more examples"
        return f"raise data.split.{name} (now {shares}), or bring more examples"

    def _digest(self) -> str:
        """Hash the sum of the examples' hashes: it has no order, and needs no memory for a million."""
        total = (self._sum_of_hashes % 2**256).to_bytes(32, "big")
        return hashlib.sha256(total + self.total.to_bytes(8, "big")).hexdigest()


def _shard(name: str, index: int) -> str:
    return f"{name}-{index:05d}-of-{SHARDS[name]:05d}.tfrecord"
