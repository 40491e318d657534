"""The stage `check-data`: what the examples were like, how far they drifted, and each gate."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pipelines import run_of, written
from prefect.logging import disable_run_logger
from test_ingestion import example, ingest

from configs.loading.pipelines import load_pipeline
from configs.schema.data_gates import DataGates
from tasks.core.artifacts import Check, DataReview, Examples, Run
from tasks.core.errors import DataError, Rejected
from tasks.data_checking import check_data
from tasks.data_quality import checks, drift, statistics
from tasks.data_quality.checks import Before
from tasks.data_quality.statistics import FeatureStatistics, Point, Statistics
from tasks.exports import extra_assets, source_digests


@pytest.fixture(autouse=True)
def _stage_run_alone() -> Iterator[None]:
    with disable_run_logger():
        yield


def counted(folder: Path, records: list[bytes], **data: Any) -> Statistics:
    """What ingest leaves of these records."""
    ingest(folder, records, **data)
    found = statistics.read(statistics.in_examples(folder / "r1"))
    assert found is not None
    return found


def persons(count: int, shift: float = 0.0) -> list[bytes]:
    """Ages from 0 to 99 in turn, moved by `shift`; two cities; every fifth has no city."""
    return [
        example(age=float(i % 100) + shift, y=i % 4, **({} if i % 5 == 0 else {"city": b"ab"[i % 2 :][:1]}))
        for i in range(count)
    ]


PERSONS = {"features": {"age": "float32", "city": "string[]"}, "label": {"y": "int64"}}


class TestStatistics:
    """What is counted while the examples are read."""

    def test_counts_are_exact(self, tmp_path: Path) -> None:
        """Range, mean, missing and values of every feature and label, over all splits."""
        found = counted(tmp_path, persons(1000), data=None, **PERSONS)
        age, city, label = (found.features[name] for name in ("age", "city", "y"))
        assert found.examples == 1000
        assert (age.least, age.largest, age.missing) == (0, 99, 0)
        assert age.mean == pytest.approx(49.5)
        assert (city.missing, city.values, city.distinct) == (200, 800, 2)
        assert sum(city.commonest.values()) == 800
        assert label.commonest == {"0": 250, "1": 250, "2": 250, "3": 250}

    def test_the_distribution_is_kept(self, tmp_path: Path) -> None:
        """Of few values all, each with the share below it and up to it."""
        points = counted(tmp_path, persons(1000), **PERSONS).features["age"].points
        assert len(points) == 100
        assert points[0] == Point(0, 0, 0.01)
        assert points[99] == Point(99, 0.99, 1)

    def test_a_value_that_is_no_number_is_missing(self, tmp_path: Path) -> None:
        """An example with a NaN among its values lacks the feature, and the NaN is in no range."""
        rows = [example(x=[i / 200, math.nan if i < 10 else 2.0], y=0) for i in range(200)]
        gates = {"limits": {"x": {"min": 0, "max": 2}}}
        x = counted(tmp_path, rows, gates=gates).features["x"]
        assert (x.missing, x.outside, x.values, x.largest) == (10, 10, 400, 2)

    def test_limits_are_rounded_as_the_values_are(self, tmp_path: Path) -> None:
        """0.1 as a float32 is more than 0.1; it lies within `max: 0.1` all the same."""
        rows = [example(x=[0.1, 0.2 if i else 0.05], y=i) for i in range(100)]
        gates = {"limits": {"x": {"max": 0.1}}}
        assert counted(tmp_path, rows, gates=gates).features["x"].outside == 99

    def test_words_of_a_file_are_known(self, tmp_path: Path) -> None:
        """A vocabulary file is relative to the YAML; what is not in it is counted."""
        (tmp_path / "cities.txt").write_text("a\nc\n")
        gates = {"limits": {"city": {"vocabulary_file": "cities.txt"}}}
        found = counted(tmp_path, persons(1000), gates=gates, **PERSONS)
        assert found.features["city"].unknown == found.features["city"].commonest["b"]

    def test_a_word_of_a_file_that_does_not_occur_is_rarest(self, tmp_path: Path) -> None:
        """It has a share of 0, as one of a `vocabulary` has; of those that occur none is absent."""
        (tmp_path / "labels.txt").write_text("0\n1\n2\n3\n4\n")
        (tmp_path / "cities.txt").write_text("a\nb\n")
        gates = {"limits": {"y": {"vocabulary_file": "labels.txt", "min_share": 0.1},
                            "city": {"vocabulary_file": "cities.txt"}}}  # fmt: skip
        found = counted(tmp_path, persons(1000), gates=gates, **PERSONS)
        assert (found.features["y"].absent, found.features["city"].absent) == ("4", None)
        row = rows(gates, found)["data.y.rarest"]
        assert (row.observed, row.passed) == (0, False)
        assert "'4'" in row.rule

    def test_a_vocabulary_that_is_not_there(self, tmp_path: Path) -> None:
        """The key and the file are named, and nothing is left."""
        gates = {"limits": {"city": {"vocabulary_file": "cities.txt"}}}
        with pytest.raises(DataError, match=r"data\.gates\.limits\.city\.vocabulary_file: .*cities\.txt"):
            ingest(tmp_path, persons(1000), gates=gates, **PERSONS)


def words(**counts: int) -> FeatureStatistics:
    """A string feature without gaps."""
    total = sum(counts.values())
    return FeatureStatistics("string", total, 0, total, distinct=len(counts), commonest=counts)


class TestDrift:
    """How far two nights lie apart."""

    def test_alike_is_nothing_and_disjoint_is_one(self) -> None:
        """The ends of the Jensen-Shannon divergence to base 2."""
        assert drift.distance(words(a=30, b=70), words(a=3, b=7), "jensen_shannon") == pytest.approx(0)
        assert drift.distance(words(a=5), words(b=5), "jensen_shannon") == pytest.approx(1)

    def test_psi_is_what_the_formula_says(self) -> None:
        """Of shares 0.5, 0.5 and 0.4, 0.6: the sum of differences times logarithms of ratios."""
        wanted = -0.1 * math.log(0.4 / 0.5) + 0.1 * math.log(0.6 / 0.5)
        assert drift.distance(words(a=50, b=50), words(a=40, b=60), "psi") == pytest.approx(wanted)

    def test_psi_of_what_was_never_there_is_large_and_finite(self) -> None:
        """A logarithm of 0 would be none."""
        assert 1 < drift.distance(words(a=50), words(b=50), "psi") < 100

    def test_missing_is_a_value_too(self) -> None:
        """The same values, half as often there."""
        gaps = FeatureStatistics("string", 100, 50, 50, distinct=2, commonest={"a": 25, "b": 25})
        assert drift.distance(words(a=50, b=50), gaps, "jensen_shannon") > 0.1

    @pytest.mark.parametrize("measure", ["jensen_shannon", "psi"])
    def test_a_number_that_moves_drifts_further_the_further_it_moves(
        self, tmp_path: Path, measure: drift.Measure
    ) -> None:
        """From 0 for the same numbers, over some to all of them beyond the range of before."""
        nights = {
            shift: counted(tmp_path / str(shift), persons(1000, shift), **PERSONS).features["age"]
            for shift in (0, 5, 50, 200)
        }
        far = [drift.distance(nights[0], night, measure) for night in nights.values()]
        assert far[0] == pytest.approx(0, abs=1e-9)
        assert far == sorted(far)
        assert far[1] > 0.005 and far[3] > far[2] + 0.1

    def test_a_value_with_a_large_share_is_compared_by_itself(self) -> None:
        """Zeros that become minus one stay in the lowest tenths, and are told all the same."""

        def mostly(value: float) -> FeatureStatistics:
            points = (
                Point(value, 0, 0.6),
                *(Point(i, 0.6 + i / 1000, 0.601 + i / 1000) for i in range(1, 400)),
            )
            return FeatureStatistics("float32", 100, 0, 100, points=points)

        assert drift.distance(mostly(0), mostly(0), "psi") == 0
        assert drift.distance(mostly(0), mostly(-1), "jensen_shannon") > 0.5


def rows(gates: dict[str, Any], tonight: Statistics, before: Before | None = None) -> dict[str, Check]:
    return {check.name: check for check in checks.check(tonight, DataGates(**gates), before)}


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    """A thousand persons, counted against some limits."""
    gates = {"limits": {"age": {"max": 89}, "city": {"vocabulary": ["a"]}}}
    return counted(tmp_path_factory.mktemp("night"), persons(1000), gates=gates, **PERSONS)


class TestChecks:
    """A row for each limit: rule, observed, limit, baseline."""

    @pytest.mark.parametrize(
        ("gates", "name", "observed", "passed"),
        [
            ({"min_examples": 1000}, "data.examples", 1000, True),
            ({"min_examples": 1001}, "data.examples", 1000, False),
            ({"limits": {"city": {"required": True}}}, "data.city.required", 800, True),
            ({"limits": {"city": {"max_missing": 0.2}}}, "data.city.missing", 0.2, True),
            ({"limits": {"city": {"max_missing": 0.19}}}, "data.city.missing", 0.2, False),
            ({"limits": {"age": {"max": 89, "max_outside": 0.1}}}, "data.age.range", 0.1, True),
            ({"limits": {"age": {"max": 89}}}, "data.age.range", 0.1, False),
            ({"limits": {"city": {"vocabulary": ["a"]}}}, "data.city.vocabulary", 0.5, False),
            ({"limits": {"y": {"min_share": 0.25}}}, "data.y.rarest", 0.25, True),
            ({"limits": {"y": {"min_share": 0.1, "vocabulary": [0, 1, 2, 3, 4]}}}, "data.y.rarest", 0, False),
            ({"limits": {"y": {"max_share": 0.2}}}, "data.y.commonest", 0.25, False),
        ],
    )  # fmt: skip
    def test_a_limit_is_a_row(
        self, night: Statistics, gates: dict[str, Any], name: str, observed: float, passed: bool
    ) -> None:
        """Ends are included."""
        row = rows(gates, night)[name]
        assert (row.observed, row.passed) == (pytest.approx(observed), passed)

    @pytest.mark.parametrize("vocabulary", [{}, {"vocabulary": ["a"]}])
    def test_without_a_value_there_is_no_balance(self, vocabulary: dict[str, Any]) -> None:
        """The row stays, and is missed: a gate does not go away with what it looks at."""
        nothing = FeatureStatistics("string", 10, missing=10, values=0, distinct=0)
        gates = {"limits": {"city": {"min_share": 0.1, **vocabulary}}}
        row = rows(gates, Statistics(10, {"city": nothing}))["data.city.rarest"]
        assert (row.observed, row.passed) == (0, False)

    def test_the_served_version_is_the_baseline(self, night: Statistics, tmp_path: Path) -> None:
        """Its numbers stand beside tonight's, and drift is from them."""
        before = Before(7, counted(tmp_path, persons(500, shift=100), **PERSONS))
        gates = {"min_examples": 9, "limits": {"city": {"max_missing": 1}},
                 "drift": {"limit": 0.2, "features": {"y": None}}}  # fmt: skip
        found = rows(gates, night, before)
        assert found["data.examples"].baseline == 500
        assert found["data.city.missing"].baseline == pytest.approx(0.2)
        assert not found["data.age.drift"].passed
        assert found["data.age.drift"].baseline == "version 7"
        assert found["data.city.drift"].passed
        assert "data.y.drift" not in found

    @pytest.mark.parametrize(
        ("before", "said"), [(None, "no version is served"), (Before(7, None), "version 7 does not say")]
    )
    def test_without_a_night_before_nothing_drifts(
        self, night: Statistics, before: Before | None, said: str
    ) -> None:
        """The row says why nothing was compared."""
        (row,) = rows({"drift": {"limit": 0.1}}, night, before).values()
        assert (row.observed, row.passed) == (said, True)

    def test_a_feature_that_is_new_is_told(self, night: Statistics) -> None:
        """There is nothing that it could have drifted from."""
        before = Before(7, Statistics(5, {"age": words(a=5)}))
        found = rows({"drift": {"limit": 0.1}}, night, before)
        assert found["data.city.drift"].observed == "a new feature"
        assert found["data.age.drift"].observed == "float32, which was string"


class Night:
    """A pipeline, its examples, and a version that is served: the highest on disk."""

    def __init__(self, folder: Path, **gates: Any) -> None:
        data = {"files": ["*.tfrecord"], "gates": gates, **PERSONS}
        self.pipeline = written(folder, {"data": data})
        self.examples: Examples = ingest(folder, persons(1000), gates=gates, **PERSONS)
        self.pipeline = written(folder, {"data": data})
        self.run: Run = run_of(self.pipeline, folder)
        self.configured(self.run.folder / "config.yaml")

    def configured(self, file: Path) -> None:
        told = self.pipeline.config.model_dump(mode="json", by_alias=True)
        file.write_text(yaml.safe_dump(told))

    def served(self, run_id: str = "r0", **manifest: Any) -> Path:
        """Leave version 3, made of the same examples by the same configuration and code."""
        folder = self.run.model_base_path / "3"
        private = extra_assets.private_folder_in(folder)
        private.mkdir(parents=True)
        made_of = {
            "data_sha256": self.examples.digest, "run_id": run_id, **extra_assets.inputs(self.run), **manifest
        }  # fmt: skip
        (folder / "assets.extra" / "manifest.json").write_text(json.dumps(made_of))
        (private / statistics.NAME).write_bytes(statistics.in_examples(self.run.folder).read_bytes())
        self.configured(private / "config.yaml")
        return private

    def review(self) -> DataReview:
        """Run the stage."""
        return check_data.fn(self.pipeline.config.data.gates, self.examples, self.run)


class TestStage:
    """The stage by itself, without a server: what is highest on disk counts as served."""

    def test_a_missed_limit_rejects_with_every_row(self, tmp_path: Path) -> None:
        """Exit code 3; passed rows are told as well, and what to do."""
        night = Night(tmp_path, min_examples=10_000, limits={"age": {"min": 0}})
        with pytest.raises(
            Rejected, match=r"data: data\.examples is 1000, required: examples >= 10000"
        ) as no:
            night.review()
        assert no.value.exit_code == 3
        assert [(check.name, check.passed) for check in no.value.checks] == [
            ("data.examples", False), ("data.age.range", True),
        ]  # fmt: skip
        assert "data.gates.missed: report" in no.value.hint

    def test_a_missed_limit_may_be_only_reported(self, tmp_path: Path) -> None:
        """The row stays, and training goes on."""
        found = Night(tmp_path, min_examples=10_000, missed="report").review()
        assert [check.passed for check in found.checks] == [False]
        assert found.summary() == "1 of 1 data gate(s) missed, and passed over"

    def test_the_same_night_again_is_needless_if_so_asked(self, tmp_path: Path) -> None:
        """And drift from the served version is nothing."""
        night = Night(tmp_path, unchanged="skip", drift={"limit": 0.01})
        night.served()
        found = night.review()
        assert found.needless.endswith("are those of version 3, which is served: nothing to train")
        assert {check.name: check.observed for check in found.checks} == pytest.approx(
            {"data.age.drift": 0, "data.city.drift": 0, "data.y.drift": 0}, abs=1e-9
        )

    @pytest.mark.parametrize(
        "served",
        [
            {"data_sha256": "other"},
            {"code_sha256": "other"},
            {"files_sha256": "other"},
            {"packages": {"tensorflow": "2.15.0"}},
            {"packages": None},
            {"run_id": "r1"},
        ],
        ids=[
            "data",
            "code",
            "files",
            "TensorFlow",
            "no packages",
            "published by this run, which was killed and goes on",
        ],
    )
    def test_anything_new_is_trained_on(self, tmp_path: Path, served: dict[str, str]) -> None:
        """Other examples, or other Python files beside the YAML."""
        night = Night(tmp_path, unchanged="skip")
        night.served(**served)
        assert night.review().needless == ""

    @pytest.mark.parametrize("changed", ["pipeline/heads/deep.py", "pipeline/words.txt", "trees/__init__.py"])
    def test_a_file_that_the_model_is_made_of_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
    ) -> None:
        """Of a subpackage, a vocabulary, and a module of a package elsewhere; others do not count."""
        for name in ("pipeline/heads/deep.py", "pipeline/words.txt", "trees/__init__.py", "trees/oak.py"):
            (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / name).write_text("before")
        monkeypatch.syspath_prepend(tmp_path)
        columns = [{"kind": "categorical_vocabulary_file", "key": "city", "file": "words.txt"}]
        model = {"feature_columns": columns, "factory": "trees.oak:build"}
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump({"data": {}, "model": model, "training": {}, "export": {}}))

        def digests() -> tuple[str, str]:
            source = tmp_path / "pipeline"
            return source_digests.of_code(source, config), source_digests.of_files(source, config)

        before = digests()
        others = (".venv/lib.py", "notes.txt", "env/pyvenv.cfg", "env/x.py")
        for name in (f"pipeline/{other}" for other in others):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("of no model")
        assert digests() == before
        (tmp_path / changed).write_text("after")
        assert digests() != before

    def test_another_configuration_is_trained_with(self, tmp_path: Path) -> None:
        """But the gates, ports and thresholds are no part of the model."""
        night = Night(tmp_path, unchanged="skip")
        config = night.served() / "config.yaml"
        told = yaml.safe_load(config.read_text())
        config.write_text(yaml.safe_dump({**told, "deployment": {}, "evaluation": {}}))
        assert night.review().needless
        told["training"]["seed"] = 7
        config.write_text(yaml.safe_dump(told))
        assert night.review().needless == ""

    def test_by_default_it_trains(self, tmp_path: Path) -> None:
        """A duplicate night is no error."""
        night = Night(tmp_path)
        night.served()
        assert night.review() == DataReview(())

    def test_without_statistics_it_says_what_to_do(self, tmp_path: Path) -> None:
        """The folder was touched after ingest."""
        night = Night(tmp_path)
        statistics.in_examples(night.run.folder).unlink()
        with pytest.raises(DataError, match=r"statistics\.json is not there"):
            night.review()


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        ({"limits": {"agee": {"max": 1}}}, "gates name 'agee', which is not one of age, city, y"),
        ({"drift": {"limit": 1, "features": {"z": 1}}}, "gates name 'z'"),
        ({"drift": {}}, "give 'limit', for all features, or 'features'"),
        ({"limits": {"city": {"min": 1}}}, "gates.limits.city: min and max are of numbers"),
        ({"limits": {"age": {"vocabulary": ["a"]}}}, "vocabulary, min_share and max_share are of int64"),
        ({"limits": {"y": {"vocabulary": ["a"]}}}, "its vocabulary holds string, and it is int64"),
        ({"limits": {"age": {"min": 2, "max": 1}}}, "min 2.0 is above max 1.0"),
        ({"limits": {"age": {"max_outside": 0.1}}}, "max_outside needs 'min', 'max' or both"),
        ({"limits": {"city": {"max_unknown": 0.1}}}, "max_unknown needs 'vocabulary'"),
        ({"limits": {"city": {"max_missing": 20}}}, "input should be less than or equal to 1"),
    ],
)
def test_a_gate_that_cannot_be_is_refused(tmp_path: Path, gates: dict[str, Any], said: str) -> None:
    """By `slipway check`, before anything is read."""
    from configs.loading.errors import ConfigError

    with pytest.raises(ConfigError) as caught:
        written(tmp_path, {"data": {"files": ["*.tfrecord"], "gates": gates, **PERSONS}})
    assert said in str(caught.value)


def test_the_demo_has_every_key() -> None:
    """configs/digits is the file to copy."""
    gates = load_pipeline(Path(__file__).parents[1] / "configs" / "digits").config.data.gates
    assert gates.min_examples and gates.drift and gates.limits["pixels"].has_range
