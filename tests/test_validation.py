"""The stage `validate`: a good candidate passes, and each way to be broken is told."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from pipelines import exported_digits, trained_digits, written

from configs.schema.pipeline import AnswersConfig, ValidationConfig
from tasks.answers import limits, offline_answers
from tasks.answers.comparison import Limit
from tasks.answers.limits import Limits
from tasks.core.artifacts import Candidate, Signature, Validation
from tasks.core.errors import Rejected
from tasks.exports.saved_models import serving_signature_defs, signatures
from tasks.in_tensorflow import validate as program
from tasks.processes import tensorflow_process
from tasks.processes.tensorflow_process import ignore_progress


def run(candidate: Candidate, **validation: Any) -> Validation:
    """Validate it in this process."""
    return program.run(
        ignore_progress, ValidationConfig(**validation), trained_digits().config.data, candidate
    )


def rejected(candidate: Candidate, **validation: Any) -> Rejected:
    with pytest.raises(Rejected) as caught:
        run(candidate, **validation)
    return caught.value


@pytest.fixture
def other_answers(tmp_path: Path) -> Callable[..., Candidate]:
    """The digits' candidate, expected to answer something else in one output of one signature."""

    def make(signature: str, alias: str, change: Callable[[Any], Any]) -> Candidate:
        candidate = exported_digits()
        shutil.copytree(candidate.offline, tmp_path / "offline")
        for size, answers in offline_answers.read(candidate.offline, "predicted", signature).items():
            answers[alias] = change(answers[alias].copy())
            offline_answers.write(tmp_path / "offline", "predicted", signature, size, answers)
        return replace(candidate, offline=tmp_path / "offline")

    return make


def test_a_fresh_process_proves_every_signature_in_every_batch_size() -> None:
    """A check for each of 4 signatures, in batches of 1, 2, 8 and all, all bit for bit."""
    digits = trained_digits()
    found = tensorflow_process.run(
        "validate", Validation, log=digits.run.log("validate"),
        arguments={"validation": digits.config.validation, "data": digits.config.data,
                   "candidate": exported_digits()},
    )  # fmt: skip
    names = ["classification", "predict", "raw:predict", "serving_default"]
    assert [check.name for check in found.checks] == names
    assert all(check.passed and check.limit == "same bits" for check in found.checks)
    assert {check.observed for check in found.checks} == {
        "5,120 numbers bit-equal",
        "10,752 numbers bit-equal",
    }
    # 64 examples: classes and scores (20 numbers), twice; 42 of predict, twice; in four batch sizes.
    assert found.numbers == 64 * (2 * 20 + 2 * 42) * 4
    assert found.summary() == "estimator.predict: 31,744 numbers bit-equal"
    exported = offline_answers.read(exported_digits().offline, "exported", "predict")
    assert exported.keys() == {1, 2, 8, 64}, "what the canary's answers are compared with, too"


def test_a_last_batch_that_is_not_full_is_run_too(tmp_path: Path) -> None:
    """7 examples in batches of 3, and all at once."""
    from test_exporting import elsewhere, export

    answers = AnswersConfig(samples=7, batch_sizes=(3,))
    found = run(export(elsewhere(tmp_path), answers=answers))
    assert found.numbers == 7 * (2 * 20 + 42) * 2


def _up(array: Any) -> Any:
    array[5, 3] = np.nextafter(array[5, 3], np.float32(2))
    return array


def test_one_bit_in_one_number_is_found_and_located(other_answers: Callable[..., Candidate]) -> None:
    """The signature, the batch, the output, the example and both numbers; all other checks pass."""
    error = rejected(other_answers("predict", "probabilities", _up))
    assert error.message.startswith(
        "validation: predict: batch of 1, output 'probabilities', sample example 5, [3]: expected "
    )
    assert error.message.endswith(" of scale apart: not bit-equal (1 of 4 checks failed)")
    (failed,) = [check for check in error.checks if not check.passed]
    assert (failed.name, failed.limit) == ("predict", "same bits")
    assert failed.rule == "equals estimator.predict (same conditions)"


def _with_limits(candidate: Candidate, change: Callable[[Limits], Limits]) -> Candidate:
    limits.write(candidate.offline, change(limits.read(candidate.offline)))
    return candidate


def test_rounding_passes_under_other_conditions(other_answers: Callable[..., Candidate]) -> None:
    """Those of the machine that predicted: the limit is then the model's own spread, or a floor."""
    moved = other_answers("predict", "probabilities", _up)
    found = run(_with_limits(moved, lambda known: replace(known, conditions={"machine": "another"})))
    check = next(check for check in found.checks if check.name == "predict")
    assert check.limit == "7.6e-06 of scale" and "another" in check.rule
    assert str(check.observed).startswith("within ") and str(check.observed).endswith("9% bit-equal")
    assert "(limit 7.6e-06 of scale)" in found.summary()


def test_a_tolerance_of_ulps_lets_rounding_pass(other_answers: Callable[..., Candidate]) -> None:
    """What is not the same bits is still reported."""
    moved = other_answers("predict", "probabilities", _up)
    ulps = {"predict": dict.fromkeys(("logits", "probabilities"), Limit(ulps=1))}
    found = run(_with_limits(moved, lambda known: replace(known, outputs={**known.outputs, **ulps})))
    check = next(check for check in found.checks if check.name == "predict")
    assert check.limit == "1 ULPs" and "bit-equal" in str(check.observed)


def test_what_is_not_reproducible_is_rejected_as_that(other_answers: Callable[..., Candidate]) -> None:
    """A model whose predictions differ from each other by more than rounding, such as with dropout."""
    wild = {"predict": {"logits": Limit(1e-3, 1e-3, scale=1.0, too_far=0.25)}}
    candidate = other_answers("predict", "probabilities", lambda same: same)
    error = rejected(_with_limits(candidate, lambda known: replace(known, outputs={**known.outputs, **wild})))
    assert error.message.startswith(
        "validation: predict logits: predictions of the same examples differ by 0.25 of scale"
    )
    assert "dropout" in error.hint


def test_another_class_name_is_found(other_answers: Callable[..., Candidate]) -> None:
    """Strings are compared exactly, whatever the tolerance."""

    def rename(array: Any) -> Any:
        array[2, 0] = b"X"
        return array

    wide = {"serving_default": {"scores": Limit(0.5, 0.1), "classes": Limit()}}
    candidate = other_answers("serving_default", "classes", rename)
    error = rejected(_with_limits(candidate, lambda known: replace(known, outputs={**known.outputs, **wide})))
    assert "output 'classes', sample example 2, [0]: expected b'X', found b'0'" in error.message


def test_another_checkpoint_is_not_what_was_evaluated(tmp_path: Path) -> None:
    """A SavedModel with other variables answers otherwise: far more than rounding."""
    candidate = exported_digits()
    shutil.copytree(candidate.path, tmp_path / "candidate")
    _double_a_bias(tmp_path / "candidate")
    error = rejected(replace(candidate, path=tmp_path / "candidate"))
    assert "4 of 4 checks failed" in error.message
    assert "expected is what estimator.predict says" in error.hint


def _double_a_bias(folder: Path) -> None:
    prefix = folder / "variables" / "variables"
    reader = tf.train.load_checkpoint(str(prefix))
    values = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    values["dnn/logits/bias"] = values["dnn/logits/bias"] * 2 + 1
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = {name: tf.compat.v1.Variable(value) for name, value in values.items()}
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver(variables, sharded=True).save(session, str(prefix), write_meta_graph=False)


@pytest.mark.parametrize("damage", ["saved_model.pb", "variables/variables.index"])
def test_a_candidate_that_does_not_load(tmp_path: Path, damage: str) -> None:
    """It is a gate's no, with a check that says `load`."""
    candidate = exported_digits()
    shutil.copytree(candidate.path, tmp_path / "candidate")
    (tmp_path / "candidate" / damage).write_bytes(b"damaged")
    error = rejected(replace(candidate, path=tmp_path / "candidate"))
    assert "does not load" in error.message
    assert [(check.name, check.passed) for check in error.checks] == [("load", False)]


def _candidate(
    folder: Path, build: Callable[[Any], dict[str, Any]], expected: dict[str, Any], sizes: tuple[int, ...]
) -> Candidate:
    """A candidate of one raw signature: from x float32[?,2] to what `build` makes of it."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [None, 2])
        tf.compat.v1.saved_model.simple_save(session, str(folder / "candidate"), {"x": x}, build(x))
    shutil.copytree(exported_digits().offline, folder / "offline")
    for leftover in (folder / "offline").glob("*+*"):
        leftover.unlink()
    for size in sizes:
        offline_answers.write(folder / "offline", "predicted", "serving_default", size, expected)
    (folder / "offline" / "limits.json").unlink()
    found: tuple[Signature, ...] = signatures(
        folder / "candidate", raw=list(serving_signature_defs(folder / "candidate"))
    )
    return Candidate(folder / "candidate", found, folder / "offline", 4)


def _small(
    folder: Path, build: Callable[[Any], dict[str, Any]], expected: dict[str, Any],
    sizes: tuple[int, ...] = (1, 2, 4),
) -> tuple[Candidate, Any]:  # fmt: skip
    """The same, with 4 examples whose x is [i, 1]."""
    from configs.schema.features import FeatureSpec
    from tasks.examples.tf_examples import serialize, write_records

    candidate = _candidate(folder, build, expected, sizes)
    spec = {"x": FeatureSpec(dtype="float32", shape=(2,))}
    records = [serialize({"x": [float(i), 1.0]}, spec) for i in range(4)]
    write_records(offline_answers.examples_file(candidate.offline), records)
    return candidate, written(folder / "yaml", {}).config.data


HALVES = np.arange(4, dtype=np.float32) / 2


@pytest.mark.parametrize(
    ("build", "expected", "message"),
    [
        (
            lambda x: {"y": 1 / x[:, 0]},
            HALVES,
            "batch of 1, output 'y', sample example 0: expected a finite number, found inf",
        ),
        (lambda x: {"y": x[:, 0] / 2 + x[:, 0] * 0}, HALVES, ""),
        (lambda x: {"y": x[:, 0] / tf.cast(tf.shape(x)[0], tf.float32)}, HALVES, "batch of 1, output"),
        (lambda x: {"y": x[:, 0] / 2}, HALVES.astype(np.float64), "expected float64[1], found float32[1]"),
        (lambda x: {"y": x[:1, 0] / 2}, HALVES, "expected float32[2], found float32[1]"),
        (lambda x: {"y": tf.reshape(x, [-1, 4])[:, 0]}, HALVES, "cannot be run in batches of 1: "),
    ],
)
def test_ways_to_be_broken(
    tmp_path: Path, build: Callable[[Any], dict[str, Any]], expected: Any, message: str
) -> None:
    """Not finite; depends on its batch; of another dtype or shape; works in some batch sizes only."""
    candidate, data = _small(tmp_path, build, {"y": expected})
    if not message:
        assert program.run(ignore_progress, ValidationConfig(), data, candidate).numbers == 12
        return
    with pytest.raises(Rejected) as caught:
        program.run(ignore_progress, ValidationConfig(), data, candidate)
    found = caught.value.message + " ".join(check.name for check in caught.value.checks if not check.passed)
    assert message in found


def test_a_shape_that_the_signature_does_not_state() -> None:
    """The SignatureDef's promise is checked, apart from the offline answers."""
    from tasks.exports.signature_runs import unlike

    with tf.Graph().as_default():
        info = tf.compat.v1.saved_model.build_tensor_info(tf.compat.v1.placeholder(tf.float32, [None, 3]))
    assert unlike(info, np.zeros((5, 3), np.float32)) == ""
    assert (
        unlike(info, np.zeros((5, 4), np.float32)) == "the signature states float32[?,3], found float32[5, 4]"
    )
    assert "found int64[5, 3]" in unlike(info, np.zeros((5, 3), np.int64))


def test_constant_outputs_are_compared_whole(tmp_path: Path) -> None:
    """An output without a batch dimension, such as a version, is the same in every batch."""
    candidate, data = _small(
        tmp_path, lambda x: {"y": x[:, 0], "version": tf.constant("v1")},
        {"y": HALVES * 2, "version": np.array(b"v1")}, sizes=(4,),
    )  # fmt: skip
    assert program.run(ignore_progress, ValidationConfig(), data, candidate).numbers == 5


def test_stage_modules_import_no_tensorflow() -> None:
    """The process that runs a flow stays small and quick: TensorFlow is for its children."""
    modules = "ingestion training evaluation exporting validation evaluations.thresholds "
    modules += "answers.comparison answers.offline_answers"
    program = f"import sys, importlib\nfor m in '{modules}'.split(): importlib.import_module('tasks.' + m)\n"
    program += "assert not [m for m in sys.modules if m.partition('.')[0] in ('tensorflow', 'keras')]"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
