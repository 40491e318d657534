"""Parquet files: types of columns, nulls, errors with row and column, memory, `slipway init`, a run."""

from __future__ import annotations

import datetime
import decimal
import importlib.util
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pytest
from pipelines import run_of, written
from pyarrow import parquet
from slipway_command import Slipway

from configs.loading.errors import ConfigError, SlipwayError
from configs.loading.pipelines import load_pipeline
from flows.command.cli import main
from tasks.core.errors import DataError, EnvironmentFault
from tasks.examples import parquet_examples, parquet_files
from tasks.examples.tf_examples import read_records
from tasks.in_tensorflow import ingest
from tasks.processes.tensorflow_process import ignore_progress
from tasks.samples import parquet_samples

DAY = datetime.date(2024, 2, 29)


def _write(file: Path, columns: Mapping[str, Any], **options: Any) -> Path:
    parquet.write_table(pyarrow.table(dict(columns)), file, **options)
    return file


def _ingested(
    folder: Path, columns: Mapping[str, Any], features: Mapping[str, Any], **data: Any
) -> list[dict[str, list[Any]]]:
    """Ingest a file of these columns and a label; return what the example of each row holds."""
    import tensorflow as tf

    folder.mkdir(exist_ok=True)
    rows = len(next(iter(columns.values())))
    _write(folder / "some.parquet", {**columns, "y": range(rows)})
    config = {"files": ["*.parquet"], "format": "parquet", "features": dict(features),
              "label": {"y": "int64"}, "split": {"eval": 0.3, "sample": 0.3}, **data}  # fmt: skip
    pipeline = written(folder, {"data": config})
    found = ingest.run(ignore_progress, pipeline.config.data, run_of(pipeline, folder))
    files = [file for split in (found.train, found.eval, found.sample) for file in split.files]
    examples = [tf.train.Example.FromString(record).features.feature for record in read_records(files)]
    examples.sort(key=lambda each: each["y"].int64_list.value[0])
    return [
        {
            name: list(getattr(feature, feature.WhichOneof("kind")).value)
            for name, feature in example.items() if name != "y" and feature.WhichOneof("kind")
        }
        for example in examples
    ]  # fmt: skip


COLUMNS = {
    "half": (pyarrow.float16(), 0.5, "float32", [0.5]),
    "double": (pyarrow.float64(), 0.25, "float32", [0.25]),
    "decimal": (pyarrow.decimal128(6, 2), decimal.Decimal("12.5"), "float32", [12.5]),
    "whole numbers as floats": (pyarrow.int64(), 7, "float32", [7.0]),
    "large whole numbers as floats": (pyarrow.int64(), 2**60 + 1, "float32", [float(2**60)]),
    "byte": (pyarrow.uint8(), 200, "int64", [200]),
    "int64": (pyarrow.int64(), -(2**63), "int64", [-(2**63)]),
    "unsigned": (pyarrow.uint64(), 2**63 - 1, "int64", [2**63 - 1]),
    "bool": (pyarrow.bool_(), True, "int64", [1]),
    "text": (pyarrow.string(), "Åland", "string", ["Åland".encode()]),
    "large text": (pyarrow.large_string(), "NA", "string", [b"NA"]),
    "a view of text": (pyarrow.string_view(), "x", "string", [b"x"]),
    "bytes": (pyarrow.binary(), b"\xff\x00", "string", [b"\xff\x00"]),
    "bytes of one length": (pyarrow.binary(2), b"\xff\x00", "string", [b"\xff\x00"]),
    "a category": (pyarrow.dictionary(pyarrow.int8(), pyarrow.string()), "red", "string", [b"red"]),
    "a date": (pyarrow.date32(), DAY, "string", [b"2024-02-29"]),
    "a time": (pyarrow.timestamp("ms"), datetime.datetime(2024, 2, 29, 1, 2, 3), "string",
               [b"2024-02-29 01:02:03.000"]),
    "a list of any length": (pyarrow.list_(pyarrow.string()), ["a", "b"], "string[]", [b"a", b"b"]),
    "a large list": (pyarrow.large_list(pyarrow.float32()), [0.5, 1.5], "float32[2]", [0.5, 1.5]),
    "a list of a fixed length": (pyarrow.list_(pyarrow.int32(), 3), [1, 2, 3], "int64[3]", [1, 2, 3]),
    "a list of categories": (pyarrow.list_(pyarrow.dictionary(pyarrow.int8(), pyarrow.string())), ["red"],
                             "string[]", [b"red"]),
    "one value of any number": (pyarrow.int64(), 3, "int64[]", [3]),
}  # fmt: skip
"""Column type, value, feature and what the example holds."""


def test_each_type_of_column(tmp_path: Path) -> None:
    """As the feature spec says, whatever the file's type is."""
    columns = {name: pyarrow.array([value] * 40, kind) for name, (kind, value, _, _) in COLUMNS.items()}
    examples = _ingested(tmp_path, columns, {name: each[2] for name, each in COLUMNS.items()})
    assert len(examples) == 40
    assert examples[0] == examples[39] == {name: each[3] for name, each in COLUMNS.items()}


def test_a_null_is_a_missing_value(tmp_path: Path) -> None:
    """So is an empty list; text is only if the YAML says so."""
    columns = {
        "age": pyarrow.array([None, *range(40)], pyarrow.float64()),
        "land": pyarrow.array(["NA", *["x"] * 40]),
        "tags": pyarrow.array([[], *[["a"]] * 40], pyarrow.list_(pyarrow.string())),
        "more": pyarrow.array([None, *[["a"]] * 40], pyarrow.list_(pyarrow.string())),
    }
    features = {
        "age": {"dtype": "float32", "default": -1.0}, "land": {"dtype": "string", "default": ""},
        "tags": "string[]", "more": "string[]",
    }  # fmt: skip
    assert _ingested(tmp_path, columns, features)[0] == {"land": [b"NA"]}
    assert _ingested(tmp_path / "na", columns, features, missing_values=["NA"])[0] == {}


def test_the_same_examples_as_csv(tmp_path: Path) -> None:
    """The same data in either format gives the same splits, to the byte."""
    rows = [(number / 4, f"land {number}", number % 2) for number in range(200)]
    csv = tmp_path / "csv"
    csv.mkdir()
    (csv / "some.csv").write_text("\n".join(["x,land,y", *(f"{x},{land},{y}" for x, land, y in rows)]))
    (tmp_path / "parquet").mkdir()
    columns = zip(("x", "land", "y"), zip(*rows, strict=True), strict=True)
    _write(tmp_path / "parquet" / "some.parquet", {name: list(values) for name, values in columns})
    digests = []
    for name in ("csv", "parquet"):
        data = {"files": [f"*.{name}"], "format": name, "features": {"x": "float32", "land": "string"},
                "label": {"y": "int64"}}  # fmt: skip
        pipeline = written(tmp_path / name, {"data": data})
        run = run_of(pipeline, tmp_path / name)
        found = ingest.run(ignore_progress, pipeline.config.data, run)
        digests.append([set(read_records(split.files)) for split in (found.train, found.eval, found.sample)])
    assert digests[0] == digests[1]


STRUCT = pyarrow.array([{"a": 1}] * 3)
REFUSED: dict[str, tuple[Any, Any, str, str]] = {
    "another type": (
        pyarrow.array([0.5, None, 1.0]), "int64", r"column 'x': expected int64, found double", "set float32"),
    "text for a number": (
        pyarrow.array(["1", "2", "3"]), "float32", r"column 'x': expected float32, found string",
        "set string"),
    "a struct": (STRUCT, "string", r"column 'x': expected string, found struct<a: int64>", "flat lists"),
    "a list of lists": (
        pyarrow.array([[[1]]] * 3), "int64[]", "expected int64, found list<.*list<", "flat lists"),
    "a list for one value": (
        pyarrow.array([[1]] * 3), "int64", r"column 'x': expected 1 int64 value, found list<", "`int64[]`"),
    "one value for a list": (
        pyarrow.array([1, 2, 3]), "int64[3]", r"expected 3 int64 values a row, found int64", "shape"),
    "lists of another length": (
        pyarrow.array([[1, 2]] * 3, pyarrow.list_(pyarrow.int64(), 2)), "int64[3]",
        "expected 3 int64 values a row, found fixed_size_list", "shape"),
    "a short list": (
        pyarrow.array([[1, 2], [1], [1, 2]]), "int64[2]",
        r"row 2: feature 'x': expected 2 int64 values, found 1 int64 value", "change data.features"),
    "a null": (
        pyarrow.array([1.0, 2.0, None]), "float32",
        r"row 3: column 'x': expected 1 float32 value, found null, and there is no default", "'default'"),
    "a null in a list": (
        pyarrow.array([[1.0], [1.0, None], [2.0]]), "float32[]",
        r"row 2: column 'x': found a null among 2 values", "leave it out"),
    "too large": (
        pyarrow.array([1, 2**64 - 1, 2], pyarrow.uint64()), "int64",
        r"row 2: column 'x': expected int64, found 18446744073709551615, which has more than 64", "as text"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_feature(tmp_path: Path, case: str) -> None:
    """The error has file, row if it is one row's, column, expected against found, and what to do."""
    column, spec, message, hint = REFUSED[case]
    with pytest.raises(DataError, match=rf"some\.parquet: .*{message}") as caught:
        _ingested(tmp_path, {"x": column}, {"x": spec})
    assert hint in caught.value.hint


def test_a_row_of_a_later_batch_has_its_number(tmp_path: Path) -> None:
    """Counted in the file, over its row groups."""
    file = _write(tmp_path / "x.parquet", {"y": [*range(5000), None]}, row_group_size=700)
    specs = written(tmp_path, {}).config.data.label
    with pytest.raises(DataError, match=r"x\.parquet: row 5,001: column 'y'"):
        list(parquet_examples.records(file, specs, ()))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["X"], "some.parquet: no column 'x': the file has X, y"),
        (["x", "x"], "column 'x' is there 2 times"),
    ],
)
def test_columns_that_are_not_there_or_there_twice(tmp_path: Path, names: list[str], message: str) -> None:
    """Before any row is read."""
    table = pyarrow.Table.from_arrays(
        [pyarrow.array([1.0])] * len(names) + [pyarrow.array([1])], [*names, "y"]
    )
    parquet.write_table(table, tmp_path / "some.parquet")
    data = {
        "files": ["*.parquet"],
        "format": "parquet",
        "features": {"x": "float32"},
        "label": {"y": "int64"},
    }
    pipeline = written(tmp_path, {"data": data})
    with pytest.raises(DataError, match=message):
        ingest.run(ignore_progress, pipeline.config.data, run_of(pipeline, tmp_path))


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flipped(content: bytes) -> bytes:
    return content[:40] + bytes(byte ^ 255 for byte in content[40:200]) + content[200:]


@pytest.mark.parametrize("damage", [_cut, _flipped, lambda _: b"x,y\n1,2\n", lambda _: b""])
def test_a_file_that_is_no_parquet(tmp_path: Path, damage: Any) -> None:
    """A truncated file, one with other bytes, a CSV file, an empty one: named."""
    file = _write(tmp_path / "x.parquet", {"y": [random.Random(1).randint(0, 2**60) for _ in range(3000)]})
    file.write_bytes(damage(file.read_bytes()))
    specs = written(tmp_path, {}).config.data.label
    with pytest.raises(DataError, match=r"x\.parquet: cannot be read as Parquet: \w+"):
        list(parquet_examples.records(file, specs, ()))


def test_memory_stays_flat(tmp_path: Path) -> None:
    """One row group of 96 MB is read through a few MB: a buffer and a page of each column."""
    rows = 3_000_000
    values = numpy.random.default_rng(1).random(rows)
    columns = {name: values * factor for factor, name in enumerate("abcd", start=1)}
    file = _write(tmp_path / "x.parquet", columns, row_group_size=rows, use_dictionary=False)
    assert file.stat().st_size > 80e6
    done = subprocess.run([sys.executable, "-c", _READ, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    read, grown = map(int, done.stdout.split())
    assert read == rows
    assert grown < 40e6, "resident memory"


_READ = """
import pathlib, re, sys
import pyarrow.parquet
from tasks.examples import parquet_files
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s*([0-9]+)", pathlib.Path("/proc/self/status").read_text())[1])
with parquet_files.opened(pathlib.Path(sys.argv[1])) as (stream, columns):
    before = peak()
    read = sum(batch.num_rows for _, batch in parquet_files.batches(stream, columns))
print(read, peak() - before)
"""


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"format": "parquet", "delimiter": ";"}, "delimiter needs format: csv, found parquet"),
        ({"format": "parquet", "compression": "gzip"}, "compression needs format: tfrecord, found parquet"),
        ({}, r"the files are named \*\.parquet: set format: parquet"),
    ],
)
def test_keys_of_other_formats(tmp_path: Path, data: dict[str, Any], problem: str) -> None:
    """Reported when the YAML is read."""
    features = {"features": {"x": "float32"}, "label": {"y": "int64"}}
    with pytest.raises(ConfigError, match=problem):
        written(tmp_path, {"data": {"files": ["*.parquet"], **features, **data}})


@pytest.fixture
def without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        parquet_files.importlib.util, "find_spec",  # type: ignore[attr-defined]
        lambda name: None if name == "pyarrow" else find_spec(name),
    )  # fmt: skip


@pytest.mark.usefixtures("without_pyarrow")
def test_without_pyarrow_the_way_out_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By `slipway init` here, by preflight before a run begins."""
    file = _write(tmp_path / "x.parquet", {"x": [1.0, 2.0], "y": [0, 1]})
    assert main(["init", "mine", str(file), "--folder", str(tmp_path / "mine")]) == EnvironmentFault.exit_code
    assert "make install-parquet" in capsys.readouterr().err
    with pytest.raises(EnvironmentFault, match="Parquet files need pyarrow"):
        parquet_files.require_pyarrow()


class TestInit:
    """`slipway init` from Parquet files."""

    def test_types_come_from_the_file(self, tmp_path: Path) -> None:
        """Whatever the values look like."""
        columns = {
            "zip": pyarrow.array(["1", "2"] * 30), "price": pyarrow.array([1.0, None] * 30),
            "tags": pyarrow.array([["a"], ["a", "b"]] * 30), "s": pyarrow.array([{"a": 1}] * 60),
            "y": pyarrow.array([True, False] * 30),
        }  # fmt: skip
        sample = parquet_samples.profile([_write(tmp_path / "x.parquet", columns)])
        found = {feature.name: feature for feature in sample.features}
        assert {name: each.dtype for name, each in found.items() if not each.note} == {
            "zip": "string", "price": "float32", "tags": "string", "y": "int64",
        }  # fmt: skip
        assert found["price"].first_missing.endswith("x.parquet: row 2")
        assert (found["tags"].shortest, found["tags"].longest) == (1, 2)
        assert found["s"].note.startswith("struct<a: int64>: features are numbers")

    def test_files_of_two_kinds(self, tmp_path: Path) -> None:
        """The column that differs is named."""
        files = [_write(tmp_path / "a.parquet", {"x": [1], "y": [1]}),
                 _write(tmp_path / "b.parquet", {"x": ["1"], "y": [1]})]  # fmt: skip
        with pytest.raises(SlipwayError, match=r"b\.parquet: column 'x': expected int64 .* found string"):
            parquet_samples.profile(files)

    def test_it_trains_and_validates(self, slipway: Slipway, tmp_path: Path) -> None:
        """As it stands, from two files, through `slipway retrain`."""
        draw = random.Random(3)
        for name in ("a", "b"):
            x = [draw.gauss(0, 1) for _ in range(400)]
            columns = {
                "x": pyarrow.array([None if draw.random() < 0.1 else each for each in x]),
                "city": pyarrow.array([draw.choice(["Rome", "Oslo"]) for _ in x]).dictionary_encode(),
                "pair": pyarrow.array([[each, 1.0] for each in x], pyarrow.list_(pyarrow.float32(), 2)),
                "tags": pyarrow.array([["a", "b", "c"][: draw.randint(0, 3)] for _ in x]),
                "left": pyarrow.array([each > 0 for each in x]),
            }
            _write(tmp_path / f"{name}.parquet", columns, row_group_size=100)
        files = [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]
        folder = tmp_path / "mine"
        assert main(["init", "mine", *files, "--folder", str(folder)]) == 0
        assert load_pipeline(folder).config.data.format == "parquet"
        done = slipway.run(folder, "training.max_steps=200", flow="retrain")
        assert (done.exit_code, done.verdict["outcome"]) == (0, "trained"), done.output
