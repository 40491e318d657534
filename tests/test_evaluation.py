"""The stage `evaluate`: metrics of a checkpoint on the eval split, and the gate."""

from __future__ import annotations

import math

import pytest
import tensorflow as tf
from pipelines import trained_digits

from configs.schema import EvaluationConfig, Threshold
from tasks import thresholds
from tasks.artifacts import Checkpoint, Evaluation
from tasks.errors import ModelError, Rejected
from tasks.evaluation import evaluate
from tasks.in_tensorflow import evaluate as program
from tasks.tensorflow_process import ignore_progress
from tasks.tf_examples import batches


def measured(checkpoint: Checkpoint | None = None, batch_size: int = 256) -> Evaluation:
    digits = trained_digits()
    return program.run(
        ignore_progress, evaluation=EvaluationConfig(batch_size=batch_size),
        checkpoint=checkpoint or digits.checkpoint, **digits.model,
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
    from tasks import estimators

    digits = trained_digits()
    config, files = digits.config, digits.examples.eval.files
    estimator = estimators.build(config.model, config.training, config.data, digits.run)
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
    return evaluate.fn(
        config.model, config.training, EvaluationConfig(thresholds=limits), config.data,
        model["examples"], digits.checkpoint, digits.run,
    )  # fmt: skip


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
