"""The stage `evaluate`: metrics of a checkpoint on the eval split, and the gate."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import tensorflow as tf
from pipelines import exported_digits, trained_digits

from configs.schema.pipeline import EvaluationConfig, Threshold
from tasks.core.artifacts import Baseline, Check, Checkpoint, Evaluation, SliceMetrics
from tasks.core.errors import ModelError, Rejected
from tasks.evaluation import evaluate
from tasks.evaluations import baselines, thresholds
from tasks.evaluations.measuring import Measure
from tasks.examples.tf_examples import batches
from tasks.in_tensorflow import evaluate as program
from tasks.processes.tensorflow_process import ignore_progress


def measured(
    checkpoint: Checkpoint | None = None, batch_size: int = 256,
    evaluation: EvaluationConfig | None = None, **also: Any,
) -> Evaluation:  # fmt: skip
    digits = trained_digits()
    chosen = evaluation or EvaluationConfig(batch_size=batch_size)
    recipe = digits.config.recipe.model_copy(update={"evaluation": chosen})
    return program.run(
        ignore_progress, recipe, digits.config.answers, digits.examples, checkpoint or digits.checkpoint,
        digits.run, **also,
    )  # fmt: skip


def test_every_eval_example_counts_whatever_the_batch() -> None:
    """Metrics are over the whole split: a batch that does not divide it changes nothing."""
    whole, odd = measured(), measured(batch_size=77)
    assert whole.examples == trained_digits().examples.eval.examples
    assert whole.metrics["accuracy"] == pytest.approx(odd.metrics["accuracy"])
    assert whole.metrics["average_loss"] == pytest.approx(odd.metrics["average_loss"], rel=1e-4)
    assert whole.metrics["accuracy"] > 0.9


def test_accuracy_is_the_share_of_right_answers() -> None:
    """Counted by hand from what the Estimator predicts."""
    from tasks.estimators import assembly

    digits = trained_digits()
    config, files = digits.config, digits.examples.eval.files
    estimator = assembly.build(config.model, config.training, config.data, digits.run)
    predictions = estimator.predict(lambda: batches(files, config.data, 500), yield_single_examples=False)
    found = [batch["class_ids"][:, 0] for batch in predictions]
    wanted = [labels.numpy() for _, labels in batches(files, config.data, 500)]
    assert measured().metrics["accuracy"] == pytest.approx((found[0] == wanted[0]).mean())


def test_the_checkpoint_that_is_named_is_evaluated() -> None:
    """Not the newest one: an earlier checkpoint has its own step and its own loss."""
    digits = trained_digits()
    state = tf.train.get_checkpoint_state(str(digits.run.model_dir))
    earlier = Checkpoint(digits.run.model_dir / "model.ckpt-200", 200, None, None)
    assert str(earlier.prefix) in state.all_model_checkpoint_paths
    before, after = measured(earlier), measured()
    assert (before.metrics["global_step"], after.metrics["global_step"]) == (200, 300)
    assert before.metrics["average_loss"] > after.metrics["average_loss"]


def _stage(limits: dict[str, Threshold]) -> Evaluation:
    digits = trained_digits()
    config, model = digits.config, digits.model
    recipe = config.recipe.model_copy(update={"evaluation": EvaluationConfig(thresholds=limits)})
    return evaluate.fn(recipe, digits.config.answers, model["examples"], digits.checkpoint, digits.run)


def test_the_stage_rejects_with_every_check() -> None:
    """A child measures; missed thresholds are exit code 3, and the passed ones are told as well."""
    with pytest.raises(Rejected, match=r"accuracy is 0\.9") as caught:
        _stage({"average_loss": Threshold(max=100), "accuracy": Threshold(min=0.9999)})
    assert caught.value.exit_code == 3
    assert [(check.name, check.passed) for check in caught.value.checks] == [
        ("average_loss", True), ("accuracy", False),
    ]  # fmt: skip
    assert caught.value.checks[1].rule == "accuracy >= 0.9999"


def test_a_threshold_with_both_ends_is_two_checks() -> None:
    """Ends are included."""
    checks = thresholds.check({"mean": 0.5}, {"mean": Threshold(min=0.5, max=0.5)})
    assert [(check.rule, check.passed) for check in checks] == [("mean >= 0.5", True), ("mean <= 0.5", True)]
    thresholds.refuse_failed(checks)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_passes_no_minimum(value: float) -> None:
    """NaN is within no limits; infinity is only beyond the one it is beyond."""
    low, high = thresholds.check({"loss": value}, {"loss": Threshold(min=0, max=1)})
    assert not (low.passed and high.passed)
    assert isinstance(low.observed, str)
    with pytest.raises(Rejected, match=r"loss is -?(nan|inf), required"):
        thresholds.refuse_failed((low, high))


def test_a_metric_that_there_is_not_names_those_there_are() -> None:
    """A misspelt metric is a ModelError with the near name."""
    with pytest.raises(ModelError) as caught:
        thresholds.check({"accuracy": 1.0, "loss": 0.1}, {"acuracy": Threshold(min=0.9)})
    assert caught.value.message.endswith("names 'acuracy'; the Estimator's metrics are accuracy, loss")
    assert caught.value.hint == "did you mean 'accuracy'?"


def test_without_thresholds_all_passes() -> None:
    """No gate was set."""
    assert thresholds.check({"loss": 1.0}, {}) == ()


def test_a_missed_threshold_that_is_passed_over_is_told() -> None:
    """What a forced run says of itself."""
    check = Check("accuracy", "accuracy >= 0.9", 0.5, 0.9, passed=False)
    told = Evaluation({"accuracy": 0.5}, 10, (check,)).summary()
    assert told == "accuracy 0.5 on 10 held-out examples; 1 threshold(s) missed, and passed over"


def test_a_missed_threshold_may_be_only_reported() -> None:
    """`evaluation.gate: reported` tells it as a check that failed, and goes on."""
    limits = {"accuracy": Threshold(min=0.9999)}
    config = EvaluationConfig(thresholds=limits, gate="reported")
    found = thresholds.check({"accuracy": 0.5}, config.thresholds)
    assert [check.passed for check in found] == [False]
    thresholds.apply(found, config)
    with pytest.raises(Rejected):
        thresholds.apply(found, EvaluationConfig(thresholds=limits))


class TestSlices:
    """`evaluation.slices`."""

    @pytest.fixture(scope="class")
    def by_digit(self) -> Evaluation:
        return measured(evaluation=EvaluationConfig(slices=("label",)))

    def test_every_example_is_in_one(self, by_digit: Evaluation) -> None:
        """Ten digits, in order, which together are the eval split."""
        assert [each.value for each in by_digit.slices] == list("0123456789")
        assert sum(each.examples for each in by_digit.slices) == by_digit.examples

    def test_their_mean_is_the_metric_of_the_whole(self, by_digit: Evaluation) -> None:
        """Each is what `Estimator.evaluate` says of these examples: a weighted mean gives the whole."""
        for name in ("accuracy", "average_loss"):
            mean = sum(each.metrics[name] * each.examples for each in by_digit.slices) / by_digit.examples
            assert mean == pytest.approx(by_digit.metrics[name], rel=1e-4)
        assert len({each.metrics["average_loss"] for each in by_digit.slices}) == 10

    def test_pictures_and_events_of_slices_are_not_in_tensorboard(self, by_digit: Evaluation) -> None:
        """The run's model_dir has the events of its own evaluations only."""
        folders = {file.parent.name for file in trained_digits().run.model_dir.rglob("events.*")}
        assert folders <= {"checkpoints", "eval"}


class TestBaseline:
    """The version that is served, on tonight's eval split."""

    def test_it_is_measured_from_the_served_files(self) -> None:
        """The same variables and the same examples: the same numbers."""
        found = measured(served=(7, exported_digits().path))
        assert found.baseline is not None
        assert found.baseline.version == 7
        assert found.baseline.metrics == pytest.approx(found.metrics, rel=1e-5)
        assert "tonight's Estimator" in found.baseline.note

    def test_a_model_of_another_shape_is_measured_by_its_own_recipe(self) -> None:
        """Tonight's Estimator cannot hold its variables: the one that it was made by can."""
        digits = trained_digits()
        wide = digits.config.model.model_copy(
            update={"params": {**digits.config.model.params, "hidden_units": [5]}}
        )
        found = _baseline_with(wide, recipe_of_served=digits.config.recipe)
        assert found.metrics["accuracy"] > 0.9
        assert "its own Estimator" in found.note

    def test_what_cannot_be_measured_is_said_and_fails_nothing(self) -> None:
        """Without that recipe there is no number, but the reason."""
        digits = trained_digits()
        wide = digits.config.model.model_copy(
            update={"params": {**digits.config.model.params, "hidden_units": [5]}}
        )
        found = _baseline_with(wide)
        assert found.metrics == {}
        assert found.note.startswith("not measured: tonight's Estimator: ")

    def test_variables_that_fit_another_graph_are_not_measured_in_it(self) -> None:
        """A graph that answers otherwise than the served model would give numbers of neither."""
        digits = trained_digits()
        other = digits.config.model.model_copy(
            update={"params": {**digits.config.model.params, "activation_fn": "tanh"}}
        )
        found = _baseline_with(other)
        assert found.metrics == {}
        assert "the Estimator's answers are not the version's: " in found.note


def _baseline_with(model: Any, **also: Any) -> Baseline:
    """What `baselines.measure` says of the exported digits when tonight's model is `model`."""
    digits = trained_digits()
    tonight = digits.config.recipe.model_copy(update={"model": model})
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        builders = {"tonight's Estimator": lambda: Measure.of(tonight, digits.run, None, scratch / "a")}
        if own := also.get("recipe_of_served"):
            builders["its own Estimator"] = lambda: Measure.of(own, digits.run, None, scratch / "b")
        return baselines.measure(7, exported_digits().path, builders, digits.examples.eval.files, scratch)


def _evaluated(served: float | None = 0.9, **metrics: float) -> Evaluation:
    """Accuracy 0.8 tonight, `served` before; in the slice city=a 0.6 and 0.9, and few examples of b."""
    parts = (SliceMetrics("city", "a", 40, {"accuracy": 0.6}), SliceMetrics("city", "b", 4, {"accuracy": 0}))
    before = None
    if served is not None:
        of_parts = (SliceMetrics("city", "a", 40, {"accuracy": 0.9}),)
        before = Baseline(7, {"accuracy": served, "loss": 2.0}, "measured", of_parts)
    return Evaluation({"accuracy": 0.8, "loss": 2.5, **metrics}, 100, slices=parts, baseline=before)


def _gated(evaluated: Evaluation, **asked: Any) -> dict[str, Check]:
    found = thresholds.of_evaluation(evaluated, EvaluationConfig.model_validate(asked))
    return {check.name: check for check in found}


class TestChanges:
    """How much worse than the served version's a metric may be, on the same examples."""

    @pytest.mark.parametrize(
        ("changes", "limit", "passed"),
        [
            ({"accuracy": {"max_drop": 0.2}}, 0.7, True),
            ({"accuracy": {"max_drop": 0.05}}, 0.85, False),
            ({"accuracy": {"max_drop": "20%"}}, 0.72, True),
            ({"accuracy": {"max_drop": "5%"}}, 0.855, False),
            ({"loss": {"max_rise": 0.5}}, 2.5, True),
            ({"loss": {"max_rise": "10%"}}, 2.2, False),
        ],
    )
    def test_the_limit_is_from_the_served_value(self, changes: Any, limit: float, passed: bool) -> None:
        """Absolute or a part of it, in the direction that is worse; the row has all four numbers."""
        (check,) = _gated(_evaluated(), changes=changes).values()
        before = 0.9 if "accuracy" in changes else 2.0
        assert (check.limit, check.baseline) == (pytest.approx(limit), before)
        assert check.passed is passed

    def test_better_is_never_too_much(self) -> None:
        """A metric that moves the other way passes, whatever the distance."""
        found = _gated(_evaluated(served=0.1), changes={"accuracy": {"max_drop": 0}})
        assert found["accuracy"].passed

    def test_what_is_no_number_is_a_drop(self) -> None:
        """NaN is not above any limit."""
        found = _gated(_evaluated(accuracy=math.nan), changes={"accuracy": {"max_drop": 1}})
        assert (found["accuracy"].observed, found["accuracy"].passed) == ("nan", False)

    def test_each_slice_is_held_against_its_own_past(self) -> None:
        """The whole may hide it; slices of few examples are passed by."""
        by_slice = {"changes": {"accuracy": {"max_drop": 0.1}}, "thresholds": {"accuracy": {"min": 0.5}}}
        found = thresholds.of_evaluation(
            _evaluated(), EvaluationConfig.model_validate({"slices": ["city"], "by_slice": by_slice})
        )
        assert [(check.rule, check.passed, check.baseline) for check in found] == [
            ("accuracy where city is a >= 0.5", True, 0.9),
            ("accuracy where city is a >= served - 0.1", False, 0.9),
        ]

    @pytest.mark.parametrize("policy", ["accept", "reject"])
    def test_a_first_night_passes_or_not_as_configured(self, policy: str) -> None:
        """The row says that there was nothing to compare with."""
        found = _gated(_evaluated(served=None), changes={"accuracy": {"max_drop": 0.1}}, no_baseline=policy)
        assert list(found) == ["baseline"]
        assert found["baseline"].observed == "nothing is served yet"
        assert found["baseline"].passed is (policy == "accept")

    def test_a_served_version_that_cannot_be_measured_is_none(self) -> None:
        """Its reason is in the row."""
        evaluated = Evaluation({"accuracy": 1.0}, 9, baseline=Baseline(7, {}, "not measured: no variables"))
        found = _gated(evaluated, changes={"accuracy": {"max_drop": 0.1}}, no_baseline="reject")
        assert found["baseline"].observed == "version 7 is not measured: no variables"
        assert not found["baseline"].passed

    @pytest.mark.parametrize("before", [{"accuracy": math.nan}, {}])
    def test_a_slice_that_cannot_be_compared_is_told(self, before: dict[str, float]) -> None:
        """A metric that the served version has of the whole, and not of that part: no gate goes away."""
        part = SliceMetrics("city", "a", 40, before)
        evaluated = replace(_evaluated(), baseline=Baseline(7, {"accuracy": 0.9}, "measured", (part,)))
        by_slice = {"changes": {"accuracy": {"max_drop": 0.1}}}
        found = _gated(evaluated, slices=["city"], by_slice=by_slice, no_baseline="reject")
        assert found["baseline"].observed == "version 7 has no accuracy where city is a"
        assert not found["baseline"].passed

    def test_a_misspelt_metric_is_told_with_its_key(self) -> None:
        """Whether or not anything is served."""
        with pytest.raises(ModelError, match=r"evaluation\.changes names 'acuracy'"):
            _gated(_evaluated(served=None), changes={"acuracy": {"max_drop": 0.1}})

    def test_slices_of_the_served_version_are_measured_where_a_gate_asks(self) -> None:
        """From its own variables, on the same parts of the eval split: the same numbers."""
        gates = {"changes": {"accuracy": {"max_drop": 0.0}}, "min_examples": 1}
        asked = EvaluationConfig.model_validate({"slices": ["label"], "by_slice": gates})
        found = measured(evaluation=asked, served=(7, exported_digits().path))
        assert found.baseline is not None
        assert [part.examples for part in found.baseline.slices] == [part.examples for part in found.slices]
        checks = thresholds.of_evaluation(found, asked)
        assert len(checks) == 10
        assert all(check.passed and check.baseline == check.observed for check in checks)

    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            ({"changes": {"a": {}}}, "give 'max_drop', 'max_rise' or both"),
            ({"changes": {"a": {"max_drop": 1}}, "baseline": "none"}, "they need baseline: served"),
            ({"by_slice": {"thresholds": {"a": {"min": 1}}}}, "by_slice needs 'slices'"),
            ({"changes": {"a": {"max_drop": "5 percent"}}}, "pattern"),
            ({"changes": {"a": {"max_drop": -1}}}, "greater than or equal to 0"),
        ],
    )
    def test_a_gate_that_cannot_be_is_refused(self, asked: Any, said: str) -> None:
        """When the YAML is read."""
        with pytest.raises(ValueError, match=said):
            EvaluationConfig.model_validate(asked)


class TestPictures:
    """What people look at."""

    def test_the_loss_and_the_confusions_are_drawn(self) -> None:
        """As SVG files whose text is text, in the run's folder."""
        drawn = {picture.file.stem: picture for picture in measured().pictures}
        assert {"loss", "confusion-label"} <= set(drawn)
        for picture in drawn.values():
            root = ElementTree.parse(picture.file).getroot()
            assert root.tag.endswith("svg")
            assert picture.title in "".join(root.itertext())

    def test_the_confusions_count_every_example(self) -> None:
        """The numbers in the picture add up to the eval split."""
        (picture,) = [each for each in measured().pictures if each.file.stem == "confusion-label"]
        numbers = [text for text in ElementTree.parse(picture.file).getroot().itertext() if text.strip()]
        counted = [int(text) for text in numbers if text.isdigit()]
        assert sum(counted) == trained_digits().examples.eval.examples + 2 * sum(range(10))  # and two axes
