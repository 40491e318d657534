"""The stage `ingest`: tonight's examples, checked and split; and every way in which they can be bad."""

from __future__ import annotations

import gzip
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from pipelines import DIGITS, run_of, trained_digits, written

from configs.loading.pipelines import load_pipeline
from configs.schema.features import FeatureSpec
from tasks.core.artifacts import Examples
from tasks.core.errors import DataError
from tasks.examples.tf_examples import read_records, serialize, write_records
from tasks.in_tensorflow import ingest as program
from tasks.processes import tensorflow_process
from tasks.processes.tensorflow_process import ignore_progress

DTYPES = {float: "float32", int: "int64", bytes: "string"}


def example(**values: Any) -> bytes:
    """A serialized tf.Example; a scalar stands for a list of one."""
    lists = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    specs = {name: FeatureSpec(dtype=DTYPES[type(value[0])]) for name, value in lists.items()}
    return serialize(lists, specs)


def many(count: int) -> list[bytes]:
    return [example(x=[float(i), 0.5], y=i % 3) for i in range(count)]


def ingest(folder: Path, records: list[bytes] | None = None, **data: Any) -> Examples:
    """Ingest `records`, or what is in `folder` already, in this process."""
    if records is not None:
        folder.mkdir(exist_ok=True)
        write_records(folder / "night.tfrecord", records)
    config = {"files": ["*.tfrecord"], "features": {"x": "float32[2]"}, "label": {"y": "int64"}, **data}
    config = {key: value for key, value in config.items() if value is not None}
    pipeline = written(folder, {"data": config})
    return program.run(ignore_progress, pipeline.config.data, run_of(pipeline, folder))


def refused(folder: Path, records: list[bytes] | None = None, **data: Any) -> DataError:
    """The error of ingesting this; nothing of it may be left where the splits would be."""
    with pytest.raises(DataError) as caught:
        ingest(folder, records, **data)
    assert not (folder / "r1" / "examples").exists()
    assert not (folder / "r1" / "examples.partial").exists()
    return caught.value


def contents(examples: Examples) -> Mapping[str, set[bytes]]:
    splits = {"train": examples.train, "eval": examples.eval, "sample": examples.sample}
    return {name: set(read_records(split.files)) for name, split in splits.items()}


def test_every_digit_is_in_exactly_one_split() -> None:
    """1,797 digits come in, and as many, each once, are in train, eval and sample."""
    examples = trained_digits().examples
    splits = contents(examples)
    assert examples.total == 1797
    assert sum(map(len, splits.values())) == 1797
    assert len(set.union(*splits.values())) == 1797
    assert [len(splits[name]) / 1797 for name in ("eval", "sample")] == pytest.approx([0.2, 0.05], abs=0.03)


def test_train_has_several_files_to_be_read_at_once() -> None:
    """Four shards of train, each with its place in its name, none of them empty."""
    files = trained_digits().examples.train.files
    assert [file.name for file in files] == [f"train-{i:05d}-of-00004.tfrecord" for i in range(4)]
    assert all(file.stat().st_size for file in files)


def test_the_digits_callable_is_deterministic(tmp_path: Path) -> None:
    """Two nights with the same data have the same digest and the same splits."""
    pipeline = load_pipeline(DIGITS)
    again = program.run(ignore_progress, pipeline.config.data, run_of(pipeline, tmp_path))
    first = trained_digits().examples
    assert again.digest == first.digest
    assert contents(again) == contents(first)


def test_the_split_depends_neither_on_order_nor_on_files(tmp_path: Path) -> None:
    """The same examples, reversed and cut into two files, are split in the same way, with one digest."""
    records = many(300)
    first = ingest(tmp_path / "one", records)
    (tmp_path / "two").mkdir()
    write_records(tmp_path / "two" / "a.tfrecord", records[:100][::-1])
    write_records(tmp_path / "two" / "b.tfrecord", records[100:])
    second = ingest(tmp_path / "two")
    assert contents(second) == contents(first)
    assert second.digest == first.digest


def test_another_example_changes_the_digest_and_moves_no_other(tmp_path: Path) -> None:
    """A night with one more example has another digest; the rest stay where they were."""
    first = contents(one := ingest(tmp_path / "one", many(300)))
    second = contents(two := ingest(tmp_path / "two", many(301)))
    assert one.digest != two.digest
    assert all(first[name] <= second[name] for name in first)


def test_duplicates_land_in_one_split(tmp_path: Path) -> None:
    """An example that occurs twice is never in train and eval at once; both are counted."""
    examples = ingest(tmp_path, many(300) * 2)
    splits = contents(examples)
    assert examples.total == 600
    assert not splits["train"] & splits["eval"]


def test_split_by_keeps_a_user_together(tmp_path: Path) -> None:
    """All examples with the same value of `split.by` land in the same split, also of a var_len one."""
    records = [example(x=[float(i), 0.0], y=i % 2, user=b"u%d" % (i % 60)) for i in range(600)]
    for form in ("string", "string[]"):
        features = {"x": "float32[2]", "user": form}
        examples = ingest(tmp_path / form, records, features=features, split={"by": "user", "sample": 0.1})
        users = {
            name: {tf.train.Example.FromString(r).features.feature["user"].bytes_list.value[0] for r in split}
            for name, split in contents(examples).items()
        }
        assert sum(map(len, users.values())) == 60


def test_gzipped_records_are_read(tmp_path: Path) -> None:
    """`compression: gzip` reads what TFRecordWriter writes with it."""
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord"), "GZIP") as writer:
        for record in many(100):
            writer.write(record)
    assert ingest(tmp_path, compression="gzip").total == 100


def test_absolute_patterns_and_overlapping_ones(tmp_path: Path) -> None:
    """A file that two patterns match is read once."""
    assert ingest(tmp_path, many(100), files=["night.*", str(tmp_path / "*.tfrecord")]).total == 100


def test_every_kind_of_feature_passes(tmp_path: Path) -> None:
    """fixed_len with shape or default, var_len and fixed_len_sequence are parsed as training does."""
    features = {
        "x": {"dtype": "float32", "shape": [2, 1]},
        "age": {"dtype": "int64", "default": 7},
        "word": {"dtype": "string", "default": "none"},
        "tags": "string[]",
        "steps": {"kind": "fixed_len_sequence", "dtype": "float32", "shape": [2]},
    }
    records = [
        example(x=[1.0, float(i)], y=i, tags=[b"a"] * (i % 3 + 1), steps=[1.0] * (2 * (i % 4) + 2))
        for i in range(100)
    ]
    assert ingest(tmp_path, records, features=features).total == 100


def test_an_ingest_tried_again_starts_afresh(tmp_path: Path) -> None:
    """What a killed ingest left half is removed."""
    (tmp_path / "r1" / "examples.partial").mkdir(parents=True)
    assert ingest(tmp_path, many(100)).total == 100
    assert ingest(tmp_path, many(120)).total == 120


def test_a_hundred_thousand_examples_take_seconds(tmp_path: Path) -> None:
    """Checking, hashing and writing cost some microseconds an example: a million take below a minute."""
    records = many(1000) * 50
    started = time.process_time()  # of this process alone, whatever else the machine does
    assert ingest(tmp_path, records).total == 50_000
    assert time.process_time() - started < 15


# Bad input


def test_no_file_matches(tmp_path: Path) -> None:
    """The pattern and where it was looked for are named."""
    error = refused(tmp_path, files=["night/*.tfrecord"])
    assert error.message == f"data.files: no file matches 'night/*.tfrecord' (looked in {tmp_path})"


def test_zero_examples(tmp_path: Path) -> None:
    """Files without a record are an error that names them."""
    error = refused(tmp_path, [])
    assert error.message == f"zero examples in 1 file(s): {tmp_path / 'night.tfrecord'}"


def test_a_missing_feature_names_record_and_near_name(tmp_path: Path) -> None:
    """File, record number, feature, what was expected, and the feature that may be meant."""
    records = many(1500)
    records[1234] = example(xs=[1.0, 2.0], y=1)
    error = refused(tmp_path, records)
    place = f"{tmp_path / 'night.tfrecord'}: record 1,235: feature 'x'"
    assert error.message == f"{place}: expected 2 float32 values, but it is missing"
    assert error.hint == "did you mean 'xs'? the example has 'xs' (2 float32 values), 'y' (1 int64 value)"


@pytest.mark.parametrize(
    ("x", "found"), [([1, 2], "2 int64 values"), ([1.0], "1 float32 value"), (b"12", "1 string value")]
)
def test_another_dtype_or_length(tmp_path: Path, x: Any, found: str) -> None:
    """Expected and found dtype and length are shown."""
    error = refused(tmp_path, [*many(20), example(x=x, y=1)])
    assert error.message.endswith(f"record 21: feature 'x': expected 2 float32 values, found {found}")
    assert "change data.features, or the data" in error.hint


def test_a_label_of_another_dtype(tmp_path: Path) -> None:
    """The label is checked like any feature."""
    error = refused(tmp_path, [example(x=[1.0, 2.0], y=1.0)])
    assert error.message.endswith("record 1: feature 'y': expected 1 int64 value, found 1 float32 value")


def test_a_var_len_feature_of_another_dtype(tmp_path: Path) -> None:
    """Features of any length have a dtype, too."""
    records = [example(x=[1.0, 2.0], y=1, tags=[3, 4])]
    error = refused(tmp_path, records, features={"x": "float32[2]", "tags": "string[]"})
    assert error.message.endswith(
        "feature 'tags': expected any number of string values, found 2 int64 values"
    )


def test_a_sequence_of_uneven_length(tmp_path: Path) -> None:
    """A fixed_len_sequence must hold whole steps."""
    features = {"x": {"kind": "fixed_len_sequence", "dtype": "float32", "shape": [2]}}
    error = refused(tmp_path, [example(x=[1.0, 2.0, 3.0], y=1)], features=features)
    assert error.message.endswith("expected a multiple of 2 float32 values, found 3 float32 values")


@pytest.mark.parametrize("spec", ["string[]", {"dtype": "string", "default": ""}])
def test_an_optional_feature_that_is_misspelt_in_every_example(tmp_path: Path, spec: Any) -> None:
    """A feature that may be missing, is, and has a near namesake, would silently be empty for ever."""
    records = [example(x=[1.0, float(i)], y=1, tag=b"a") for i in range(100)]
    error = refused(tmp_path, records, features={"x": "float32[2]", "tags": spec})
    assert error.message.startswith("no example has the feature 'tags'; they have 'tag' (1 string value)")
    assert error.hint == "did you mean 'tag'?"


def test_an_optional_feature_that_nothing_resembles_may_be_missing(tmp_path: Path) -> None:
    """Nobody had a tag tonight: that is no error."""
    assert ingest(tmp_path, many(100), features={"x": "float32[2]", "tags": "string[]"}).total == 100


def test_bytes_that_are_no_tf_example(tmp_path: Path) -> None:
    """Records of something else are named."""
    error = refused(tmp_path, [*many(3), b"\xff\xff\xff"])
    assert error.message.endswith("record 4: expected a serialized tf.Example, found 3 other bytes")


def test_a_flipped_byte(tmp_path: Path) -> None:
    """A corrupt record is named by the last good one before it."""
    refused(tmp_path, [])
    file = tmp_path / "night.tfrecord"
    write_records(file, many(2000))
    size = file.stat().st_size // 2000
    with file.open("r+b") as stream:
        stream.seek(1500 * size + size // 2)
        stream.write(b"\xff\xff")
    error = refused(tmp_path)
    assert error.message.startswith(f"{file}: corrupt TFRecord after record 1,500: corrupted record at")


def test_a_truncated_file(tmp_path: Path) -> None:
    """A file that ends within a record is corrupt, not short."""
    file = tmp_path / "night.tfrecord"
    write_records(file, many(50))
    file.write_bytes(file.read_bytes()[:-7])
    assert refused(tmp_path).message.startswith(f"{file}: corrupt TFRecord after record 49: truncated record")


def test_gzip_that_was_not_said(tmp_path: Path) -> None:
    """A gzipped file read as plain one says which key to set; a plain one read as gzip, too."""
    file = tmp_path / "night.tfrecord"
    write_records(file, many(50))
    assert refused(tmp_path, compression="gzip").hint == "the file is not gzipped: remove data.compression"
    file.write_bytes(gzip.compress(file.read_bytes()))
    error = refused(tmp_path)
    assert error.message.startswith(f"{file}: corrupt TFRecord after record 0")
    assert error.hint == "the file is gzipped: set data.compression: gzip"


def test_an_empty_split(tmp_path: Path) -> None:
    """Too few examples for a split is an error that names the fraction to raise."""
    error = refused(tmp_path, many(2))
    assert "split is empty: 2 example(s) were split into" in error.message
    assert "data.split." in error.hint


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('no data tonight')", "failed: ValueError: no data tonight"),
        ("(folder / 'data.txt').write_text('x')", "expected *.tfrecord files in {folder}, found data.txt"),
        ("pass", "expected *.tfrecord files in {folder}, found nothing"),
    ],
)
def test_an_ingest_callable_that_fails(tmp_path: Path, body: str, message: str) -> None:
    """What it raised, or what it left instead of TFRecords, is told with the name of the callable."""
    (tmp_path / "nightly.py").write_text(f"def write(folder):\n    {body}\n")
    error = refused(tmp_path, files=None, ingest="nightly.py:write")
    folder = tmp_path / "r1" / "ingested"
    assert error.message.startswith("data.ingest = 'nightly.py:write'")
    assert error.message.endswith(message.format(folder=folder))


def test_an_ingest_callable_that_is_not_there(tmp_path: Path) -> None:
    """It is a DataError, with the path."""
    error = refused(tmp_path, files=None, ingest="nightly.py:write")
    assert f"no such file: {tmp_path / 'nightly.py'}" in error.message


def test_errors_reach_the_flow_whole(tmp_path: Path) -> None:
    """Raised in the child, caught in the flow's process: class, message and hint are the same."""
    pipeline = written(tmp_path, {})
    run = run_of(pipeline, tmp_path)
    with pytest.raises(DataError, match="no file matches") as caught:
        tensorflow_process.run(
            "ingest", Examples, log=run.log("ingest"),
            arguments={"data": pipeline.config.data, "run": run},
        )  # fmt: skip
    assert caught.value.hint
