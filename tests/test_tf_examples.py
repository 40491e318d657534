"""tf.Examples: parsing specs, serializing, CSV, and batches of features and labels."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from pipelines import run_of, trained_digits, written

from configs.schema.features import FeatureSpec
from configs.schema.pipeline import DataConfig, TrainingConfig
from tasks.core.errors import DataError
from tasks.examples.csv_examples import parse_cell
from tasks.examples.tf_examples import batches, parsing_spec, serialize, training_batches, write_records
from tasks.in_tensorflow import ingest as program
from tasks.processes.tensorflow_process import ignore_progress

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
WORD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0;"), min_size=1)
FLOAT = st.floats(width=32, allow_nan=False)
INTEGER = st.integers(-(2**63), 2**63 - 1)


def parsed(values: Any, spec: FeatureSpec) -> Any:
    """`values` as they are after a tf.Example was made of them and parsed."""
    record = serialize({"a": values}, {"a": spec})
    return tf.io.parse_example([record], parsing_spec({"a": spec}))["a"]


@given(st.lists(FLOAT, min_size=4, max_size=4))
def test_floats_survive(values: list[float]) -> None:
    """What goes into a tf.Example comes out, in the shape that the spec says."""
    found = parsed(values, FeatureSpec(dtype="float32", shape=(2, 2)))
    assert found.shape == (1, 2, 2)
    assert found.numpy().ravel().tolist() == values


@given(st.lists(INTEGER))
def test_any_number_of_integers_survives(values: list[int]) -> None:
    """var_len is sparse: as many values as there were."""
    assert parsed(values, FeatureSpec(dtype="int64", kind="var_len")).values.numpy().tolist() == values


@given(st.lists(st.binary(), min_size=1))
def test_sequences_of_strings_survive(values: list[bytes]) -> None:
    """fixed_len_sequence is dense."""
    found = parsed(values, FeatureSpec(dtype="string", kind="fixed_len_sequence"))
    assert found.numpy().tolist() == [values]


@pytest.mark.parametrize(
    ("dtype", "default"), [("float32", 1.5), ("float32", 2), ("int64", 3), ("string", "x")]
)
def test_a_default_fills_every_value_of_a_missing_feature(dtype: str, default: Any) -> None:
    """Its shape is that of the feature."""
    spec = FeatureSpec(dtype=dtype, shape=(2,), default=default)
    empty = tf.train.Example().SerializeToString()
    found = tf.io.parse_example([empty], parsing_spec({"a": spec}))["a"].numpy()
    wanted = default.encode() if isinstance(default, str) else default
    assert found.tolist() == [[wanted, wanted]]


def test_serializing_is_deterministic() -> None:
    """The order in which features are given does not show in the bytes."""
    specs = {name: FeatureSpec(dtype="int64") for name in "abcdefgh"}
    forth = serialize({name: [1] for name in specs}, specs)
    assert forth == serialize({name: [1] for name in reversed(specs)}, specs)


def test_training_batches_are_full_shuffled_and_endless() -> None:
    """More batches than the data holds come, in another order each time round, labels beside features."""
    digits = trained_digits()
    training = TrainingConfig(batch_size=500)
    dataset = training_batches(digits.examples.train.files, digits.config.data, training)
    first, *_, last = list(dataset.take(8))
    features, labels = first
    assert list(features) == ["pixels"]
    assert features["pixels"].shape == (500, 64)
    assert labels.shape == (500,)
    assert not np.array_equal(labels, last[1])


def test_the_seed_decides_the_order() -> None:
    """The same seed gives the same batches; another one, others."""
    digits = trained_digits()

    def labels(seed: int) -> list[int]:
        training = TrainingConfig(batch_size=100, seed=seed)
        dataset = training_batches(digits.examples.train.files, digits.config.data, training)
        return list(next(iter(dataset))[1].numpy())

    assert labels(1) == labels(1)
    assert labels(1) != labels(2)


def test_batches_hold_every_example_once() -> None:
    """Evaluation sees each example, the last batch being smaller."""
    digits = trained_digits()
    sizes = [len(labels) for _, labels in batches(digits.examples.eval.files, digits.config.data, 100)]
    assert sum(sizes) == digits.examples.eval.examples
    assert set(sizes[:-1]) == {100}


def test_several_labels_are_a_dict(tmp_path: Path) -> None:
    """One label is a tensor; more are named."""
    config = {"files": ["*"], "features": {"x": "float32"}, "label": {"a": "int64", "b": "float32"}}
    pipeline = written(tmp_path, {"data": config})
    specs = {
        name: FeatureSpec(dtype=kind) for name, kind in (("x", "float32"), ("a", "int64"), ("b", "float32"))
    }
    write_records(tmp_path / "f", [serialize({"x": [1.0], "a": [2], "b": [3.0]}, specs)])
    features, labels = next(iter(batches([tmp_path / "f"], pipeline.config.data, 1)))
    assert (sorted(features), sorted(labels)) == (["x"], ["a", "b"])


# CSV


@given(st.lists(FLOAT, min_size=1))
def test_floats_of_a_cell_survive(values: list[float]) -> None:
    """Numbers as Python writes them, separated by semicolons."""
    cell = ";".join(map(repr, values))
    assert parse_cell(cell, FeatureSpec(dtype="float32", kind="var_len")) == values


@given(st.lists(INTEGER, min_size=2, max_size=2))
def test_integers_of_a_cell_survive(values: list[int]) -> None:
    """All of int64, the exact number of them."""
    assert parse_cell(f"{values[0]};{values[1]}", FeatureSpec(dtype="int64", shape=(2,))) == values


@given(TEXT)
def test_a_scalar_string_may_hold_semicolons(text: str) -> None:
    """Only features of several values are cut."""
    assert parse_cell(text, FeatureSpec(dtype="string"), frozenset({""})) == [text.encode()]


@given(st.lists(st.tuples(TEXT, INTEGER, st.lists(WORD, max_size=3)), min_size=1))
def test_rows_survive_a_csv_file(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    """Quotes, commas, line breaks and any script in cells come through csv into tf.Examples."""
    from tasks.examples.example_sources import csv_batches

    file = tmp_path_factory.mktemp("csv") / "rows.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "number", "ignored", "words"])
        writer.writerows([text, number, "x", ";".join(words)] for text, number, words in rows)
    specs = {
        "text": FeatureSpec(dtype="string"),
        "number": FeatureSpec(dtype="int64"),
        "words": FeatureSpec(dtype="string", kind="var_len"),
    }
    data = DataConfig(files=("*.csv",), format="csv", features=specs, label={"y": FeatureSpec(dtype="int64")},
                      missing_values=("",))  # fmt: skip
    (batch,) = csv_batches(file, specs, data)
    found = tf.io.parse_example(list(batch.records), parsing_spec(specs))
    assert [text.decode() for text in found["text"].numpy()] == [text for text, _, _ in rows]
    assert found["number"].numpy().tolist() == [number for _, number, _ in rows]
    assert [w.decode() for w in found["words"].values.numpy()] == [w for _, _, words in rows for w in words]


CSV_DATA = {
    "files": ["*.csv"],
    "format": "csv",
    "features": {"age": "float32", "name": {"dtype": "string", "default": "?"}, "tags": "string[]"},
    "label": {"y": "int64"},
}


def csv_refused(folder: Path, text: str | bytes) -> DataError:
    """The error of ingesting a CSV file."""
    folder.mkdir(exist_ok=True)
    (folder / "night.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    pipeline = written(folder, {"data": CSV_DATA})
    with pytest.raises(DataError) as caught:
        program.run(ignore_progress, pipeline.config.data, run_of(pipeline, folder))
    assert not (folder / "r1" / "examples").exists()
    return caught.value


def test_csv_is_ingested(tmp_path: Path) -> None:
    """Columns by name in any order, a byte order mark, blank lines and columns of no feature are fine."""
    rows = "".join(f"{i % 3},{i}.5,extra,a;b,\n\n" for i in range(100))
    (tmp_path / "a.csv").write_text("y, age,other,tags,name\n" + rows, encoding="utf-8-sig")
    pipeline = written(tmp_path, {"data": CSV_DATA})
    assert program.run(ignore_progress, pipeline.config.data, run_of(pipeline, tmp_path)).total == 100


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1,x,a,0\n2,x,a,zero\n", "3: column 'y': expected int64, found 'zero'"),
        ("1,x,a,1.0\n", "2: column 'y': expected int64, found '1.0'"),
        ("1,x,a,1_0\n", "2: column 'y': expected int64, found '1_0'"),
        (f"1,x,a,{2**63}\n", f"2: column 'y': expected int64, found {2**63}, which has more than 64 bits"),
        ('1,"x\ny",a,0\none,x,a,0\n', "4: column 'age': expected float32, found 'one'"),
        (
            ",x,a,0\n",
            "2: column 'age': expected 1 float32 value, found an empty cell, and there is no default",
        ),
        ("1,x,a\n", "2: expected 4 cells, as in the header, found 3"),
        ('1,x,a,0\n1,"x,a,0\n', "3: not valid CSV: unexpected end of data"),
    ],
)
def test_a_bad_cell_names_line_and_column(tmp_path: Path, rows: str, message: str) -> None:
    """file:line, the column, what was expected and what was found."""
    error = csv_refused(tmp_path, f"age,name,tags,y\n{rows}")
    assert error.message == f"{tmp_path / 'night.csv'}:{message}"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", ": empty: expected a header line with the names of the columns", ""),
        (
            "ages,name,tags,y\n",
            ":1: no column 'age': the header has ages, name, tags, y",
            "did you mean 'ages'?",
        ),
        ("age,name,tag,y\n", ":1: no column 'tags': the header has age, name, tag, y", "did you mean 'tag'?"),
        ("age,y,age,name,tags\n", ":1: column 'age' is there 2 times", "rename one"),
    ],
)
def test_a_bad_header(tmp_path: Path, text: str, message: str, hint: str) -> None:
    """Missing, misspelt and repeated columns are found before any row is read."""
    error = csv_refused(tmp_path, text)
    assert (error.message, error.hint) == (f"{tmp_path / 'night.csv'}{message}", hint)


def test_a_header_without_rows_is_zero_examples(tmp_path: Path) -> None:
    """As an empty TFRecord file is."""
    assert csv_refused(tmp_path, "age,name,tags,y\n").message.startswith("zero examples in 1 file(s)")


def test_csv_that_is_not_utf8(tmp_path: Path) -> None:
    """The encoding is named."""
    assert "not UTF-8" in csv_refused(tmp_path, b"age,name,tags,y\n1,\xe9,a,0\n").message


def test_nan_is_a_number_here() -> None:
    """If missing_values does not have it; and infinity: a gate for the data looks at values."""
    (value,) = parse_cell("nan", FeatureSpec(dtype="float32"), frozenset({""})) or []
    assert math.isnan(float(value))
