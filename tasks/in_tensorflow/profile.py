"""Program `profile`: what the tf.Examples of a sample hold, feature by feature."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tensorflow as tf
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-not-found]

from tasks.core.errors import DataError
from tasks.examples.example_sources import tfrecord_batches
from tasks.samples.profiles import MOST_EXAMPLES, Dtype, Sample, Tally

_DTYPES: dict[str, Dtype] = {"float_list": "float32", "int64_list": "int64", "bytes_list": "string"}
_FEATURE_LISTS = 2  # field number in tf.SequenceExample; a tf.Example has field 1 only


def run(_progress: Callable[[Mapping[str, Any]], None], files: Sequence[Path]) -> Sample:
    """Return what the TFRecord files hold. Raises DataError with file and record number."""
    compression = _compression(files)
    tallies: dict[str, _Found] = {}
    count = 0
    for place, record in _records(files, compression):
        count += 1
        if count > MOST_EXAMPLES:
            break
        example = _parsed(place, record)
        for name, feature in example.features.feature.items():
            _add(tallies, name, feature, place, count)
        for found in tallies.values():
            found.note_missing(place, count)
    read = min(count, MOST_EXAMPLES)
    features = tuple(tallies[name].tally.profile(tallies[name].first_missing) for name in sorted(tallies))
    columns = {name: tallies[name].tally.column(read) for name in sorted(tallies)}
    return Sample(tuple(files), "tfrecord", compression, read, count == read, features, columns)


class _Found:
    """A feature that examples have: its tally, and where it was seen and missed first."""

    def __init__(self, tally: Tally, place: str, first: int) -> None:
        self.tally, self.place = tally, place
        self.first_missing = "the first record" if first > 1 else ""

    def note_missing(self, place: str, count: int) -> None:
        if not self.first_missing and self.tally.present < count:
            self.first_missing = place


def _compression(files: Sequence[Path]) -> Literal["none", "gzip"]:
    """Return the compression of all files. Raises DataError where they differ."""
    zipped = {file: _is_gzip(file) for file in files}
    if len(set(zipped.values())) > 1:
        odd = next(file for file in files if zipped[file] != zipped[files[0]])
        message = f"{odd}: {'' if zipped[odd] else 'not '}gzipped, unlike {files[0]}"
        raise DataError(message, "a pipeline's files are all gzipped or none is")
    return "gzip" if zipped[files[0]] else "none"


def _is_gzip(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _records(files: Sequence[Path], compression: str) -> Iterator[tuple[str, bytes]]:
    for file in files:
        empty = True
        for batch in tfrecord_batches(file, compression):
            empty = False
            yield from ((batch.place(index), record) for index, record in enumerate(batch.records))
        if empty:
            raise DataError(f"{file}: empty: no record in it", "give a sample that has some")


def _parsed(place: str, record: bytes) -> Any:
    """Return the tf.Example; DataError where the record is none."""
    try:
        example = tf.train.Example.FromString(record)
    except DecodeError:
        message = f"{place}: expected a serialized tf.Example, found {len(record)} other bytes"
        raise DataError(message, "write tf.train.Example protos: example.SerializeToString()") from None
    unknown = {field.field_number for field in UnknownFieldSet(example)}
    if unknown == {_FEATURE_LISTS}:
        message = f"{place}: expected a tf.Example, found a tf.SequenceExample"
        raise DataError(message, "write its steps as features of a tf.Example, one list each")
    if unknown or not example.features.feature:
        what = "other bytes" if unknown else "one without features"
        message = f"{place}: expected a serialized tf.Example, found {what}"
        raise DataError(message, "write tf.train.Example protos: example.SerializeToString()")
    return example


def _add(tallies: dict[str, _Found], name: str, feature: Any, place: str, count: int) -> None:
    kind = feature.WhichOneof("kind")
    values = getattr(feature, kind).value if kind else ()
    if not values:
        return
    dtype = _DTYPES[kind]
    if name not in tallies:
        tallies[name] = _Found(Tally(name, dtype), place, count)
    before = tallies[name]
    if before.tally.dtype != dtype:
        message = f"{place}: feature {name!r} is {dtype}, and {before.tally.dtype} in {before.place}"
        raise DataError(message, "write it with one type")
    before.tally.add(values, count - 1)
