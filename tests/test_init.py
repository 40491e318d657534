"""`slipway init`: a pipeline from a sample of one's data, what it guesses, and what it refuses."""

from __future__ import annotations

import csv
import gzip
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
import yaml
from slipway_command import REPOSITORY, Slipway

from configs.loading.errors import SlipwayError
from configs.loading.pipelines import load_pipeline
from flows.command.cli import main
from tasks.in_tensorflow import profile as tfrecord_profile
from tasks.processes.tensorflow_process import ignore_progress
from tasks.samples import csv_samples, leakage
from tasks.samples.guesses import Guess, guess
from tasks.samples.profiles import Sample


def _csv(file: Path, header: str, rows: Iterable[Sequence[object]]) -> Path:
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header.split(","), *rows])
    return file


def _feature(values: Sequence[Any]) -> Any:
    if isinstance(values[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    if isinstance(values[0], int):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def _example(**values: Sequence[Any]) -> bytes:
    features = {name: _feature(each) for name, each in values.items()}
    return bytes(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def _tfrecord(file: Path, records: Iterable[bytes], compression: str = "") -> Path:
    with tf.io.TFRecordWriter(str(file), compression) as writer:
        for record in records:
            writer.write(record)
    return file


def _customers(folder: Path) -> Path:
    """Six hundred customers; those on the basic and plus plans who come seldom leave."""
    rnd, rows = random.Random(1), []
    for number in range(600):
        plan, visits = rnd.choice(["basic", "plus", "pro"]), rnd.randint(0, 30)
        rows.append([
            1000 + number, f"2024-0{rnd.randint(1, 9)}-11", plan if rnd.random() > 0.1 else "",
            f"city {rnd.randint(0, 79)}", visits, "" if rnd.random() < 0.2 else round(rnd.random() * 1e3, 2),
            ";".join(rnd.sample(["a", "b", "c"], rnd.randint(1, 3))), f"0{rnd.randint(1000, 9999)}",
            f"{rnd.random():.3f};{rnd.random():.3f}", f"said thing {number}", 7,
            "yes" if visits < 10 and plan != "pro" else "no",
        ])  # fmt: skip
    header = "customer_id,since,plan,city,visits,total spend,tags,zip,scores,note,const,churned"
    return _csv(folder / "customers.csv", header, rows)


def _houses(folder: Path) -> Path:
    """Five hundred tf.Examples, gzipped, with lists of all kinds; the label is far from zero."""
    rnd = random.Random(2)

    def house(number: int) -> bytes:
        size = [rnd.random() for _ in range(3)]
        optional = {"rooms": [rnd.randint(0, 99) for _ in range(rnd.randint(1, 4))]} if number % 4 else {}
        return _example(
            size=size, prices=[rnd.random()] * rnd.randint(1, 3), photo=[bytes([255, 216, number % 256])],
            **{"built of": [rnd.choice([b"brick", b"wood"])]}, y=[1e5 + size[0] * 3e4], **optional,
        )  # fmt: skip

    return _tfrecord(folder / "houses.tfrecord.gz", map(house, range(500)), "GZIP")


def _irises(folder: Path) -> Path:
    code = "import pathlib, sys, ingest; ingest.write_irises(pathlib.Path(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=REPOSITORY / "configs" / "two_heads", check=True, capture_output=True,
    )  # fmt: skip
    return folder / "irises.tfrecord"


def _profiled(file: Path) -> Sample:
    if file.suffix == ".csv":
        return csv_samples.profile([file])
    return tfrecord_profile.run(ignore_progress, [file])


def _specs(made: Guess) -> dict[str, Any]:
    return {feature.name: feature.spec if feature.column else None for feature in made.features}


class TestGuesses:
    """What a sample is taken for."""

    def test_csv(self, tmp_path: Path) -> None:
        """Types, lists, missing cells; what no Estimator can learn from is left out, with the reason."""
        made = guess(_profiled(_customers(tmp_path)))
        mean = next(each.profile.mean for each in made.features if each.name == "total spend")
        assert _specs(made) == {
            "customer_id": None, "since": None, "zip": None, "note": None, "const": None,
            "plan": {"dtype": "string", "default": ""}, "city": "string", "visits": "int64",
            "total spend": {"dtype": "float32", "default": float(f"{mean:.6g}")},
            "tags": "string[]", "scores": "float32[2]",
        }  # fmt: skip
        why = {feature.name: feature.why for feature in made.features}
        assert "a value of its own in every example" in why["customer_id"]
        assert why["since"].startswith("dates (2024-01-11 … 2024-09-11)")
        assert why["const"] == "7 wherever it is: nothing to learn from"
        assert why["plan"].startswith("3 words: basic, plus, pro; missing in ")
        assert (made.label.name, made.label.task, made.label.words) == ("churned", "binary", ("no", "yes"))
        assert made.renamed == {"total spend": "total_spend"}

    def test_tfrecord(self, tmp_path: Path) -> None:
        """Kinds, fixed and variable lengths, bytes that are no text; gzip is seen."""
        sample = _profiled(_houses(tmp_path))
        assert (sample.compression, sample.examples, sample.whole) == ("gzip", 500, True)
        made = guess(sample)
        assert _specs(made) == {
            "built of": "string", "photo": None, "prices": None, "rooms": "int64[]", "size": "float32[3]",
        }  # fmt: skip
        why = {feature.name: feature.why for feature in made.features}
        assert why["rooms"] == "1 to 4 integers an example: taken for ids; missing in 25%"
        assert why["photo"].startswith("bytes that are no text")
        assert (made.label.name, made.label.task, made.label.metric) == ("y", "regression", "average_loss")

    @pytest.mark.parametrize(
        ("values", "task", "spec", "classes"),
        [
            ([0, 1], "binary", "int64", 2),
            ([0.0, 1.0], "binary", "int64", 2),
            ([0, 1, 2], "classes", "int64", 3),
            ([1, 2, 3], "classes", "int64", 4),
            ([-1, 1], "regression", "int64", 2),
            ([2, 900], "regression", "int64", 2),
            ([0.5, 1.5], "regression", "float32", 2),
            (["b", "a"], "binary", "string", 2),
            (["b", "a", "c"], "classes", "string", 3),
        ],
    )
    def test_the_label_says_the_task(
        self, tmp_path: Path, values: list[Any], task: str, spec: str, classes: int
    ) -> None:
        """Classes are words or counted from 0; everything else is an amount."""
        rows = [[n, f"{value:g}" if isinstance(value, float) else value] for n, value in enumerate(values)]
        label = guess(_profiled(_csv(tmp_path / "x.csv", "x,y", rows))).label
        assert (label.task, label.spec, label.classes) == (task, spec, classes)

    def test_float_classes_of_examples_are_two_at_most(self, tmp_path: Path) -> None:
        """MultiClassHead takes integers only; BinaryClassHead takes 0.0 and 1.0."""
        file = _tfrecord(tmp_path / "a.tfrecord", [_example(x=[n], y=[float(n % 2)]) for n in range(4)])
        assert guess(_profiled(file)).label.task == "binary"
        file = _tfrecord(tmp_path / "b.tfrecord", [_example(x=[n], y=[float(n % 3)]) for n in range(6)])
        assert guess(_profiled(file)).label.task == "regression"

    def test_many_words_go_to_a_file_and_more_are_hashed(self, tmp_path: Path) -> None:
        """A vocabulary in the YAML can be read; one of hundreds is a file; beyond, there is none."""
        rows = [[f"w{n % 200}", f"t{n % 1500}", n % 2] for n in range(3000)]
        few, many = guess(_profiled(_csv(tmp_path / "x.csv", "few,many,y", rows))).used
        assert len(few.vocabulary) == 200
        assert few.column == {
            "kind": "embedding", "dimension": 4,
            "of": {"kind": "vocabulary", "key": "few", "file": "few.txt", "num_oov_buckets": 1},
        }  # fmt: skip
        assert many.column is not None
        assert many.column["of"] == {"kind": "hash_bucket", "key": "many", "buckets": 4096}

    def test_a_stray_word_among_numbers_is_named(self, tmp_path: Path) -> None:
        """`n.a.` would make a number a word: the line is told, and the column left out."""
        rows = [[n, "n.a." if n == 5 else n / 3, n % 2] for n in range(20)]
        made = guess(_profiled(_csv(tmp_path / "x.csv", "x,z,y", rows)))
        assert made.features[1].why.startswith("numbers, but for 1: 'n.a.' in x.csv:7: ")
        assert made.features[1].column is None

    @pytest.mark.parametrize(("cell", "spec"), [("007", "string"), ("1e3", "float32"), ("1" * 20, "float32")])
    def test_what_is_no_integer(self, tmp_path: Path, cell: str, spec: str) -> None:
        """Codes with zeros in front, powers of ten, and more than 64 bits."""
        rows = [[cell, 0], ["12", 1], [cell, 0]]
        assert guess(_profiled(_csv(tmp_path / "x.csv", "x,y", rows))).features[0].spec == spec


def _refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["init", "mine", *map(str, arguments)]) != 0
    return capsys.readouterr().err


class TestRefusals:
    """What `init` will not do: each error names file and place, and nothing is left behind."""

    @pytest.fixture(autouse=True)
    def here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Work in an empty folder."""
        monkeypatch.chdir(tmp_path)
        return tmp_path

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "x.csv: empty: expected a header line"),
            (b"a,b\n", "x.csv: a header, and no row"),
            (b"a,b\n1,2\n3\n", "x.csv:3: expected 2 cells, as in the header, found 1"),
            (b"a,a\n1,2\n", "x.csv:1: column 'a' is there 2 times"),
            (b"a,\n1,2\n", "x.csv:1: column 2 has no name"),
            (b"1,2\n3,4\n", "x.csv:1: expected a header, found only numbers"),
            (b'a,b\n1,"2\n', "x.csv:2: not valid CSV"),
            (b"a,b\n\x81,2\n", "x.csv: not CP1252"),
            (gzip.compress(b"a,b\n1,2\n", mtime=0), "x.csv: gzipped"),
            (b"a,y\n1,1\n2,\n", "the label 'y' is missing in 1 of 2 examples, first in"),
            (b"a,y\n1,1\n2,1\n", "the label 'y' is 1 in every example"),
            (b"a,y\n7,1\n7,2\n", "no feature is left to learn from: a: 7 wherever it is"),
        ],
    )
    def test_a_bad_csv(
        self, here: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str
    ) -> None:
        """File and line."""
        (here / "x.csv").write_bytes(content)
        assert said in _refused(capsys, "x.csv")
        assert sorted(path.name for path in here.iterdir()) in (["x.csv"], ["configs", "x.csv"])

    @pytest.mark.parametrize(
        ("records", "said"),
        [
            ([], "empty: no record in it"),
            ([b"\xff\xff\xff"], "record 1: expected a serialized tf.Example, found 3 other bytes"),
            ([_example(x=[1], y=[1]), b""], "record 2: expected a serialized tf.Example"),
            ([_example(x=[1], y=[1]), _example(x=[0.5], y=[1])], "'x' is float32, and int64"),
            ([tf.train.SequenceExample(feature_lists=tf.train.FeatureLists(
                feature_list={"s": tf.train.FeatureList()})).SerializeToString()], "a tf.SequenceExample"),
            ([_example(x=[1]), _example(x=[2])], "which feature is the label? The examples have x"),
            ([_example(x=[1], y=[1, 2])], "the label 'y' has 2 to 2 values an example, expected one"),
        ],
    )  # fmt: skip
    def test_a_bad_tfrecord(self, here: Path, records: list[bytes], said: str) -> None:
        """File and record."""
        file = _tfrecord(here / "x.tfrecord", records)
        with pytest.raises(SlipwayError) as caught:
            guess(_profiled(file))
        assert said in str(caught.value)

    def test_a_truncated_tfrecord(self, here: Path) -> None:
        """The record after which it is corrupt."""
        file = _tfrecord(here / "x.tfrecord", [_example(x=[n], y=[1]) for n in range(9)])
        file.write_bytes(file.read_bytes()[:-5])
        with pytest.raises(SlipwayError, match=r"x\.tfrecord: corrupt TFRecord after record 8"):
            _profiled(file)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ((), "no sample: the features are guessed from one"),
            (("nowhere.csv",), "nowhere.csv: no such file"),
            ((".",), ".: a folder"),
            (("x.csv", "--label", "yy"), "--label 'yy': the sample has no such feature"),
            (("x.csv", "z.csv"), "z.csv:1: the columns are q; those of the first file a, y"),
        ],
    )
    def test_bad_usage(
        self, here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
    ) -> None:
        """What was named, and what instead."""
        (here / "x.csv").write_text("a,y\n1,0\n2,1\n")
        (here / "z.csv").write_text("q\n1\n")
        assert said in _refused(capsys, *arguments)

    def test_a_bad_name(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Before any file is read."""
        assert main(["init", "My Model", "nowhere.csv"]) == 2
        assert "'My Model' is no name for a pipeline" in capsys.readouterr().err

    def test_nothing_is_overwritten(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A folder that holds anything stays as it is; another may be named."""
        (here / "x.csv").write_text("a,y\n1,0\n2,1\n")
        (here / "configs" / "mine").mkdir(parents=True)
        (here / "configs" / "mine" / "notes").write_text("precious")
        assert "configs/mine is there already: nothing is overwritten" in _refused(capsys, "x.csv")
        assert [path.name for path in (here / "configs" / "mine").iterdir()] == ["notes"]
        assert main(["init", "mine", "x.csv", "--folder", "elsewhere"]) == 0
        assert load_pipeline(here / "elsewhere").config.name == "mine"


class TestLeakage:
    """A feature that alone predicts the label."""

    def _said(self, folder: Path, capsys: pytest.CaptureFixture[str], header: str, rows: Any) -> str:
        sample = _csv(folder / "sample.csv", header, rows)
        label = header.rpartition(",")[2]
        assert main(["init", "mine", str(sample), "--folder", str(folder / "made"), "--label", label]) == 0
        return " ".join(capsys.readouterr().out.split())

    def test_a_class_is_told_by_number_and_word(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """By how much, and beside what; one that helps, an identifier and noise are not told."""
        rnd, rows = random.Random(3), []
        for _ in range(400):
            churned = rnd.random() < 0.3
            refund = rnd.uniform(10, 90) if churned else 0.0
            state = "closed" if churned and rnd.random() < 0.995 else "open"
            helps = rnd.gauss(2.0 if churned else 0.0, 1)
            rows.append([f"{refund:.2f}", state, f"{helps:.3f}", rnd.randint(0, 9), int(churned)])
        said = self._said(tmp_path, capsys, "refund,state,helps,noise,churned", rows)
        assert (
            "leakage? refund alone predicts churned in 100.0% of 200 examples (the commonest class: " in said
        )
        assert re.search(r"leakage\? state alone predicts churned in (9\d|100)\.\d% of 200", said)
        assert said.count("leakage?") == 2
        assert "remove it from data.features" in said

    def test_a_quantity_is_told_by_its_variance(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A label in another currency; one that is merely correlated is a good feature."""
        rnd, rows = random.Random(4), []
        for _ in range(600):
            price = rnd.uniform(1000, 9000)
            rows.append([f"{price * 1.1:.2f}", f"{price / 100 + rnd.gauss(0, 15):.2f}", f"{price:.2f}"])
        said = self._said(tmp_path, capsys, "euros,area,price", rows)
        assert re.search(
            r"leakage\? euros alone explains (99|100)\.\d% of the variance of price in 300", said
        )
        assert said.count("leakage?") == 1

    def test_of_tf_examples_too(self, tmp_path: Path) -> None:
        """Values are paired across examples that lack some."""
        records = [
            _example(**({"x": [float(n)]} if n % 3 else {}), y=[int(n > 50)], z=[1, 2]) for n in range(100)
        ]
        sample = _profiled(_tfrecord(tmp_path / "s.tfrecord", records))
        assert sample.columns["x"][:3] == (None, 1.0, 2.0)
        assert set(sample.columns["z"]) == {None}
        (leak,) = leakage.leaks(sample.columns, "y", True, ["x", "z"])
        assert (leak.feature, leak.examples) == ("x", 33)


class TestNames:
    """Names and words of the user's stand in a YAML that is read again."""

    def test_whatever_they_are(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Quotes, colons, hashes, line breaks, control characters, words that YAML takes for others."""
        monkeypatch.chdir(tmp_path)
        names = ["a: b", "#x", "no", "null", '"', "line\nbreak", "ä", "1e3", "*y", "{z}", "back\\slash"]
        words = ["yes", "1", "a\x07b", "'", "# c", "~"]
        rows = [[*(words[(n + k) % 6] for k in range(len(names))), n % 2] for n in range(12)]
        file = tmp_path / "odd [1].csv"
        with file.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([[*names, "y"], *rows])
        assert main(["init", "odd", str(file), "--from", "csv"]) == 0
        config = load_pipeline(tmp_path / "configs" / "odd").config
        assert set(config.data.features) == set(names)
        assert config.data.files == ("../../odd [[]1].csv",)
        keys = {column.model_dump()["of"]["key"] for column in config.model.feature_columns}
        assert len(keys) == len(names)
        found = [path for pattern in config.data.files for path in (tmp_path / "configs/odd").glob(pattern)]
        assert [path.name for path in found] == ["odd [1].csv"]


class TestRuns:
    """What `init` makes trains, passes its gate, and answers alike; as it stands."""

    @pytest.mark.parametrize(
        ("sample", "options", "settings"),
        [
            (_houses, (), ()),
            (
                _irises,
                ("--from", "estimator", "--label", "species"),
                ("model.factory=model.py:build_canned",),
            ),
            (_customers, ("--from", "estimator"), ()),
        ],
        ids=["TFRecord, a regression", "a canned Estimator of a factory", "CSV, a model_fn"],
    )
    def test_it_trains_and_validates(
        self, slipway: Slipway, sample: Callable[[Path], Path], options: tuple[str, ...],
        settings: tuple[str, ...], tmp_path: Path,
    ) -> None:  # fmt: skip
        """`slipway check` passes on it; `slipway retrain` leaves a validated candidate."""
        folder = tmp_path / "mine"
        assert main(["init", "mine", str(sample(tmp_path)), *options, "--folder", str(folder)]) == 0
        assert main(["check", str(folder)]) == 0
        done = slipway.run(folder, *settings, flow="retrain")
        assert (done.exit_code, done.verdict["outcome"]) == (0, "trained"), done.output

    def test_its_python_is_clean(self, tmp_path: Path) -> None:
        """ruff finds nothing in what is written, by the repository's own rules."""
        folder = tmp_path / "mine"
        sample = str(_customers(tmp_path))
        assert main(["init", "mine", sample, "--from", "estimator", "--folder", str(folder)]) == 0
        assert {path.name for path in folder.iterdir()} == {
            "pipeline.yaml", "model.py", "preprocess.py", "city.txt",
        }  # fmt: skip
        options = ["--config", REPOSITORY / "pyproject.toml", "--extend-ignore", "E501"]  # words may be long
        ruff = [sys.executable, "-m", "ruff", "check", *options, folder]
        found = subprocess.run(ruff, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout

    def test_every_guess_stands_in_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A feature's line says why; one that is left out is a comment that can be put back."""
        monkeypatch.chdir(tmp_path)
        assert main(["init", "mine", str(_customers(tmp_path))]) == 0
        text = (tmp_path / "configs" / "mine" / "pipeline.yaml").read_text()
        lines = [" ".join(line.split()) for line in text.splitlines()]
        assert "visits: int64 # whole numbers, 0 to 30" in lines
        assert "# const: int64 # left out: 7 wherever it is: nothing to learn from" in lines
        assert yaml.safe_load(text)["data"]["split"] == {"eval": 0.3, "sample": 0.15}


def test_without_tensorflow_csv_is_enough(tmp_path: Path) -> None:
    """Guessing from CSV imports neither TensorFlow nor Prefect."""
    _csv(tmp_path / "x.csv", "a,y", [[1, 0], [2, 1]])
    code = (
        "import sys; from flows.command.cli import main; assert main(['init', 'mine', 'x.csv']) == 0; "
        "print(sorted({'tensorflow', 'prefect'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
