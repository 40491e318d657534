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

from configs.schema import Ulps, ValidationConfig
from tasks import tensorflow_process
from tasks.answers import offline_answers
from tasks.artifacts import Candidate, Signature, Validation
from tasks.errors import Rejected
from tasks.exports.saved_models import serving_signature_defs, signatures
from tasks.in_tensorflow import validate as program
from tasks.tensorflow_process import ignore_progress


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
        answers = offline_answers.read(candidate.offline, signature)
        answers[alias] = change(answers[alias].copy())
        offline_answers.write(tmp_path / "offline", signature, answers)
        return Candidate(candidate.path, candidate.signatures, tmp_path / "offline", candidate.samples)

    return make


def test_a_fresh_process_proves_every_signature_in_every_batch_size() -> None:
    """A check for each of 4 signatures in batches of 1, 2, 8 and all, all bit for bit."""
    digits = trained_digits()
    found = tensorflow_process.run(
        "validate", Validation, log=digits.run.log("validate"), prepare_next=False,
        arguments={"validation": digits.config.validation, "data": digits.config.data,
                   "candidate": exported_digits()},
    )  # fmt: skip
    assert [check.name for check in found.checks if check.name.startswith("raw:")] == [
        "raw:predict in batches of 1", "raw:predict in batches of 2", "raw:predict in batches of 8",
        "raw:predict all at once",
    ]  # fmt: skip
    assert len(found.checks) == 16
    assert all(check.passed and check.observed == 0 and check.limit == 0 for check in found.checks)
    # 64 examples: classes and scores (20 numbers), twice; 42 of predict, twice; in four batch sizes.
    assert found.numbers == 64 * (2 * 20 + 2 * 42) * 4


def test_a_last_batch_that_is_not_full_is_asked_too() -> None:
    """7 examples in batches of 3."""
    found = run(exported_digits(), samples=7, batch_sizes=(3,))
    assert found.numbers == 7 * (2 * 20 + 2 * 42)


def _up(array: Any) -> Any:
    array[5, 3] = np.nextafter(array[5, 3], np.float32(2))
    return array


def test_one_bit_in_one_number_is_found_and_located(other_answers: Callable[..., Candidate]) -> None:
    """The signature, the output, the example, both numbers and the ULPs; all other checks pass."""
    error = rejected(other_answers("predict", "probabilities", _up))
    assert error.message.startswith(
        "validation: signature 'predict', output 'probabilities', sample example 5: [0, 3]: expected "
    )
    assert "(1 ULPs apart) (4 of 16 checks failed)" in error.message
    assert "{ulps: 1}" in error.hint
    failed = [check for check in error.checks if not check.passed]
    assert [check.name for check in failed] == [
        "predict in batches of 1", "predict in batches of 2", "predict in batches of 8",
        "predict all at once",
    ]  # fmt: skip
    for check in failed:
        assert str(check.observed).startswith("2,688 numbers, 1 ULPs at most; first: signature 'predict', ")
        assert ", sample example 5: [" in str(check.observed) and check.limit == 0


def test_a_tolerance_of_ulps_lets_rounding_pass(other_answers: Callable[..., Candidate]) -> None:
    """The largest distance is still told."""
    found = run(other_answers("predict", "probabilities", _up), tolerance=Ulps(ulps=1))
    told = [str(check.observed) for check in found.checks if check.name.startswith("predict")]
    assert len(told) == 4 and all(", 1 ULPs at most; first: " in each for each in told)


def test_another_class_name_is_found(other_answers: Callable[..., Candidate]) -> None:
    """Strings are compared exactly, whatever the tolerance."""

    def rename(array: Any) -> Any:
        array[2, 0] = b"X"
        return array

    error = rejected(other_answers("serving_default", "classes", rename), tolerance=Ulps(ulps=1000))
    assert "output 'classes', sample example 2: [0, 0]: expected b'X', found b'0'" in error.message


def test_another_checkpoint_is_not_what_was_evaluated(tmp_path: Path) -> None:
    """A SavedModel with other variables answers otherwise: far more than rounding."""
    candidate = exported_digits()
    shutil.copytree(candidate.path, tmp_path / "candidate")
    _double_a_bias(tmp_path / "candidate")
    error = rejected(replace(candidate, path=tmp_path / "candidate"))
    assert "16 of 16 checks failed" in error.message
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


def _candidate(folder: Path, build: Callable[[Any], dict[str, Any]], expected: dict[str, Any]) -> Candidate:
    """A candidate of one raw signature: from x float32[?,2] to what `build` makes of it."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [None, 2])
        tf.compat.v1.saved_model.simple_save(session, str(folder / "candidate"), {"x": x}, build(x))
    shutil.copytree(exported_digits().offline, folder / "offline")
    offline_answers.write(folder / "offline", "serving_default", expected)
    found: tuple[Signature, ...] = signatures(
        folder / "candidate", raw=list(serving_signature_defs(folder / "candidate"))
    )
    return Candidate(folder / "candidate", found, folder / "offline", 4)


def _small(
    folder: Path, build: Callable[[Any], dict[str, Any]], expected: dict[str, Any]
) -> tuple[Candidate, Any]:
    """The same, with 4 examples whose x is [i, 1]."""
    from configs.features import FeatureSpec
    from tasks.examples.tf_examples import serialize, write_records

    candidate = _candidate(folder, build, expected)
    spec = {"x": FeatureSpec(dtype="float32", shape=(2,))}
    records = [serialize({"x": [float(i), 1.0]}, spec) for i in range(4)]
    write_records(offline_answers.examples_file(candidate.offline), records)
    return candidate, written(folder / "yaml", {}).config.data


HALVES = np.arange(4, dtype=np.float32) / 2


@pytest.mark.parametrize(
    ("build", "expected", "message"),
    [
        (lambda x: {"y": 1 / x[:, 0]}, HALVES, "sample example 0: [0]: expected a finite number, found inf"),
        (lambda x: {"y": x[:, 0] / 2 + x[:, 0] * 0}, HALVES, ""),
        (lambda x: {"y": x[:, 0] / tf.cast(tf.shape(x)[0], tf.float32)}, HALVES, "in batches"),
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
        assert program.run(ignore_progress, ValidationConfig(), data, candidate).numbers == 16
        return
    with pytest.raises(Rejected) as caught:
        program.run(ignore_progress, ValidationConfig(), data, candidate)
    found = caught.value.message + " ".join(check.name for check in caught.value.checks if not check.passed)
    assert message in found


def test_a_shape_that_the_signature_does_not_state() -> None:
    """The SignatureDef's promise is checked, apart from the offline answers."""
    from tasks.answers.signature_runs import _unlike_stated

    with tf.Graph().as_default():
        info = tf.compat.v1.saved_model.build_tensor_info(tf.compat.v1.placeholder(tf.float32, [None, 3]))
    assert _unlike_stated(info, np.zeros((5, 3), np.float32)) == ""
    assert (
        _unlike_stated(info, np.zeros((5, 4), np.float32))
        == "the signature states float32[?,3], found float32[5, 4]"
    )
    assert "found int64[5, 3]" in _unlike_stated(info, np.zeros((5, 3), np.int64))


def test_constant_outputs_are_compared_whole(tmp_path: Path) -> None:
    """An output without a batch dimension, such as a version, is the same in every batch."""
    candidate, data = _small(
        tmp_path, lambda x: {"y": x[:, 0], "version": tf.constant("v1")},
        {"y": HALVES * 2, "version": np.array(b"v1")},
    )  # fmt: skip
    assert program.run(ignore_progress, ValidationConfig(batch_sizes=("all",)), data, candidate).numbers == 5


def test_stage_modules_import_no_tensorflow() -> None:
    """The process that runs a flow stays small and quick: TensorFlow is for its children."""
    modules = "ingestion training evaluation exporting validation thresholds "
    modules += "answers.comparison answers.offline_answers"
    program = f"import sys, importlib\nfor m in '{modules}'.split(): importlib.import_module('tasks.' + m)\n"
    program += "assert not [m for m in sys.modules if m.partition('.')[0] in ('tensorflow', 'keras')]"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
