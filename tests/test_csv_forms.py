"""CSV as others write it: words for missing values, delimiters, encodings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pipelines import run_of, written

from configs.loading.errors import ConfigError
from configs.loading.pipelines import load_pipeline
from configs.schema.data import MISSING_VALUES
from flows.command.cli import main
from tasks.core.errors import DataError
from tasks.examples.tf_examples import read_records
from tasks.in_tensorflow import ingest
from tasks.processes.tensorflow_process import ignore_progress
from tasks.samples import csv_samples
from tasks.samples.guesses import guess

FEATURES = {"age": {"dtype": "float32", "default": -1.0}, "land": "string", "tags": "string[]"}


def _ingested(folder: Path, text: bytes, **data: Any) -> list[dict[str, list[Any]]]:
    """Ingest a CSV file; return what each example holds, in the order of the land's name."""
    import tensorflow as tf

    folder.mkdir(exist_ok=True)
    (folder / "some.csv").write_bytes(text)
    config = {"files": ["*.csv"], "format": "csv", "features": FEATURES, "label": {"y": "int64"},
              "split": {"eval": 0.3, "sample": 0.3}, **data}  # fmt: skip
    pipeline = written(folder, {"data": config})
    found = ingest.run(ignore_progress, pipeline.config.data, run_of(pipeline, folder))
    records = [
        record for split in (found.train, found.eval, found.sample) for record in read_records(split.files)
    ]
    examples = [tf.train.Example.FromString(record).features.feature for record in records]
    rows = [
        {"age": list(each["age"].float_list.value), "land": each["land"].bytes_list.value[0].decode(),
         "tags": list(each["tags"].bytes_list.value)}
        for each in examples
    ]  # fmt: skip
    return sorted(rows, key=lambda row: row["land"])


def _csv(*rows: str, delimiter: str = ",", encoding: str = "utf-8") -> bytes:
    more = [f"{number}.0,land {number:02d},a,0" for number in range(40)]
    lines = ["age,land,tags,y", *rows, *more]
    return "\n".join(line.replace(",", delimiter) for line in lines).encode(encoding)


@pytest.mark.parametrize("word", MISSING_VALUES)
def test_pandas_words_for_missing(tmp_path: Path, word: str) -> None:
    """A default is taken, a list is empty: the example has no value."""
    first, *_ = _ingested(tmp_path, _csv(f"{word},a land,{word},1"))
    assert first == {"age": [], "land": "a land", "tags": []}


def test_a_missing_value_without_a_default_is_named(tmp_path: Path) -> None:
    """With its line, and the key that decides it."""
    with pytest.raises(DataError, match=r"some.csv:2: column 'land': .* the missing value 'NA'") as caught:
        _ingested(tmp_path, _csv("1.0,NA,a,1"))
    assert "data.missing_values" in caught.value.hint


def test_na_may_be_a_word(tmp_path: Path) -> None:
    """Namibia's."""
    first, *_ = _ingested(tmp_path, _csv("1.0,NA,NA,1"), missing_values=[""])
    assert (first["land"], first["tags"]) == ("NA", [b"NA"])


@pytest.mark.parametrize(
    ("delimiter", "encoding"), [(";", "latin-1"), ("\t", "utf-16"), ("|", "cp1252"), (",", "UTF-8")]
)
def test_other_delimiters_and_encodings(tmp_path: Path, delimiter: str, encoding: str) -> None:
    """The same examples."""
    text = _csv("7.5,Åland,x,1", delimiter=delimiter, encoding=encoding)
    *_, last = _ingested(tmp_path, text, delimiter=delimiter, encoding=encoding)
    assert last == {"age": [7.5], "land": "Åland", "tags": [b"x"]}


def test_a_wrong_delimiter_is_guessed_at(tmp_path: Path) -> None:
    """Before the columns are missed one by one."""
    with pytest.raises(DataError, match=r"some\.csv:1: expected cells between ','") as caught:
        _ingested(tmp_path, _csv(delimiter=";"))
    assert caught.value.hint == "set data.delimiter to ';'"


def test_a_wrong_encoding_is_named(tmp_path: Path) -> None:
    """And what to set."""
    with pytest.raises(DataError, match="not UTF-8") as caught:
        _ingested(tmp_path, _csv("1.0,Åland,a,1", encoding="latin-1"))
    assert "data.encoding" in caught.value.hint


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"encoding": "utf8000"}, "Python knows no encoding 'utf8000'"),
        ({"delimiter": ", "}, "at most 1 character"),
        ({"format": "tfrecord", "delimiter": ";"}, "delimiter needs format: csv, found tfrecord"),
    ],
)
def test_what_cannot_be(tmp_path: Path, data: dict[str, Any], problem: str) -> None:
    """Told when the YAML is read."""
    with pytest.raises(ConfigError, match=problem):
        _ingested(tmp_path, b"", **data)


def test_a_resolved_configuration_of_tfrecords_is_valid(tmp_path: Path) -> None:
    """It holds every default: a resumed run reads it."""
    import yaml

    config = written(tmp_path, {}).config.model_dump(mode="json", by_alias=True)
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config))
    assert load_pipeline(tmp_path).config.data.delimiter == ","


def test_init_takes_the_same_words_for_missing(tmp_path: Path) -> None:
    """A column of numbers with NA is one of numbers, and some are missing."""
    file = tmp_path / "some.csv"
    file.write_text("age,y\n1.5,0\nNA,1\n2.5,0\n")
    age = next(feature for feature in csv_samples.profile([file]).features if feature.name == "age")
    assert age.dtype == "float32"
    assert age.first_missing.endswith("some.csv:3")


@pytest.mark.parametrize(
    ("delimiter", "encoding"), [(";", "cp1252"), ("\t", "utf-16"), ("|", "utf-8"), (",", "utf-8")]
)
def test_init_finds_delimiter_and_encoding(tmp_path: Path, delimiter: str, encoding: str) -> None:
    """It writes them into the YAML, unless they are the defaults."""
    file = tmp_path / "some.csv"
    file.write_bytes(_csv("7.5,Åland,x,1", delimiter=delimiter, encoding=encoding))
    folder = tmp_path / "mine"
    assert main(["init", "mine", str(file), "--folder", str(folder)]) == 0
    data = load_pipeline(folder).config.data
    assert (data.delimiter, data.encoding, data.format) == (delimiter, encoding, "csv")
    words = next(each.words for each in csv_samples.profile([file]).features if each.name == "land")
    assert words is not None and "Åland" in dict(words)


def test_init_leaves_out_free_text_and_ids_by_any_name(tmp_path: Path) -> None:
    """Sentences, even if few; names that hardly any example shares."""
    texts = [
        "the first time that it failed",
        "nobody at home again this time",
        "left at the neighbour's door",
    ]
    rows = [f"N{number * 2 // 3},{texts[number % 3]},{number % 7}.5,{number % 2}" for number in range(60)]
    file = tmp_path / "some.csv"
    file.write_text("\n".join(["Individual ID,Comments,x,y", *rows]))
    made = {feature.name: feature for feature in guess(csv_samples.profile([file])).features}
    assert made["Comments"].why.startswith("free text, up to 6 words")
    assert made["Comments"].column is None
    assert made["Individual ID"].why == "40 values in 60 examples: too few share one"
    assert made["x"].column is not None
