"""`validation.inputs`: a user's own inputs, in the forms of `saved_model_cli run`, and their answers."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from pipelines import exported_digits, trained_digits, written

from configs.loading.errors import ConfigError
from configs.schema.pipeline import ValidationConfig, ValidationInput
from tasks.answers import validation_inputs
from tasks.core.artifacts import Candidate, Check, Run
from tasks.core.errors import ModelError, Rejected
from tasks.in_tensorflow import validate
from tasks.processes.tensorflow_process import ignore_progress


def small(folder: Path) -> tuple[Candidate, Run]:
    """A model of y = 2x and of the word `even`, for x float32[?,2]; and files beside its YAML."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [None, 2])
        outputs = {
            "y": 2 * tf.debugging.check_numerics(x, "bad"),
            "word": tf.fill([tf.shape(x)[0]], "even"),
        }
        tf.compat.v1.saved_model.simple_save(session, str(folder / "model"), {"x": x}, outputs)
    source = folder / "pipeline; odd [name]"
    source.mkdir()
    np.save(source / "ones.npy", np.ones((3, 2), np.float32))
    np.savez(source / "more.npz", a=np.full((1, 2), 4, np.float32), b=np.full((1, 2), 8, np.float32))
    (source / "pickled.npy").write_bytes(pickle.dumps(np.ones((1, 2), np.float32)))
    np.save(source / "twos.npy", np.full((3, 2), 2, np.float32))
    np.save(source / "words.npy", np.array([b"even"] * 3))
    run = Run("small", "r1", folder / "r1", source, folder / "models")
    return Candidate(folder / "model", (), folder, 0), run


ODD = {
    "isolated": ValidationInput(input_exprs=(
        "x=np.full((1, 2), len(__import__('os').listdir('.')) + ('SECRET' in __import__('os').environ)"
        " + len(__import__('sys').stdin.read()), 'float32')",
    )),
    "one of an npz": ValidationInput(inputs=("x=more.npz[b]",)),
    "no such file": ValidationInput(inputs=("x=nowhere.npy",)),
    "pickle": ValidationInput(inputs=("x=pickled.npy",)),
    "pickle allowed": ValidationInput(inputs=("x=pickled.npy",), allow_pickle=("x",)),
    "which of two": ValidationInput(inputs=("x=more.npz",)),
    "no such input": ValidationInput(inputs=("z=ones.npy",)),
    "no such signature": ValidationInput(inputs=("x=ones.npy",), signature="other"),
    "no such tags": ValidationInput(inputs=("x=ones.npy",), tag_set="serve,gpu"),
    "no expression": ValidationInput(input_exprs=("x=np.",)),
    "kept": ValidationInput(inputs=("x=ones.npy",), outdir="given"),
    "kept again": ValidationInput(inputs=("x=ones.npy",), outdir="given"),
    "replaced": ValidationInput(inputs=("x=ones.npy",), outdir="given", overwrite=True),
    "the model fails": ValidationInput(input_exprs=("x=np.full((1, 2), np.nan, 'float32')",)),
}  # fmt: skip


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], Path]]:
    """What came of each odd input, and where its outputs are; all in one process."""
    candidate, run = small(tmp_path_factory.mktemp("odd"))
    inputs = tuple(ODD.values())
    folders = [validation_inputs._outdir(each, index, run) for index, each in enumerate(inputs)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECRET", "1")
        results = validation_inputs._isolated(inputs, folders, candidate, run)
    return dict(zip(ODD, zip(results, folders, strict=True), strict=True))


def test_expressions_see_no_environment_no_files_and_no_input(odd: Any) -> None:
    """The environment, the working folder and stdin are empty."""
    result, folder = odd["isolated"]
    assert result == {"outputs": ["word", "y"]}
    assert np.load(folder / "y.npy").tolist() == [[0, 0]]


def test_a_key_chooses_from_an_npz(odd: Any) -> None:
    """And the path of the pipeline's folder may have characters that the tool's own syntax has."""
    assert np.load(odd["one of an npz"][1] / "y.npy").tolist() == [[16, 16]]


def test_pickles_are_loaded_only_where_they_are_named(odd: Any) -> None:
    """A pickle runs code."""
    assert "name x in allow_pickle if you trust it" in odd["pickle"][0]["wrong"]
    assert np.load(odd["pickle allowed"][1] / "y.npy").tolist() == [[2, 2]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no such file", "nowhere.npy (the path is relative to the YAML)"),
        ("which of two", "contains more than one ndarrays"),
        ("no such input", '"z" is not a valid input key. Please choose from "x"'),
        ("no such signature", "other"),
        ("no such tags", "could not be found"),
        ("no expression", "SyntaxError"),
        ("kept again", "already exists"),
    ],
)
def test_what_cannot_be_asked_is_told_in_the_tool_s_words(odd: Any, name: str, message: str) -> None:
    """It is an error of the pipeline's, not of the model."""
    assert message in odd[name][0]["wrong"]


def test_outputs_are_replaced_only_where_that_is_said(odd: Any) -> None:
    """`overwrite: true`."""
    assert odd["kept"][0] == odd["replaced"][0] == {"outputs": ["word", "y"]}


def test_a_model_that_fails_has_failed_a_check(odd: Any) -> None:
    """Not the inputs: they were read."""
    assert "bad : Tensor had NaN values" in odd["the model fails"][0]["failed"]


def test_outputs_are_compared_with_files(tmp_path: Path) -> None:
    """Numbers and strings, equal ones and others; each is a check, and so is that it ran."""
    candidate, run = small(tmp_path)
    expected = {"y": "twos.npy", "word": "words.npy"}
    config = ValidationConfig(inputs=(
        ValidationInput(inputs=("x=ones.npy",), expected=expected),
        ValidationInput(
            input_exprs=("x=np.full((3, 2), 1 + 2**-23, 'float32')",), expected=expected, tolerance="exact"
        ),
    ))  # fmt: skip
    found = validation_inputs.checks(config, candidate, run)
    assert [(check.name, check.passed) for check in found] == [
        ("validation.inputs[0] serving_default", True),
        ("validation.inputs[0] serving_default y", True),
        ("validation.inputs[0] serving_default word", True),
        ("validation.inputs[1] serving_default", True),
        ("validation.inputs[1] serving_default y", False),
        ("validation.inputs[1] serving_default word", True),
    ]
    assert "expected 2.0, found 2.0000002, 1.2e-07 of scale apart: not bit-equal" in str(found[4].observed)
    assert np.load(run.folder / "outputs" / "0" / "word.npy").tolist() == [b"even"] * 3
    with pytest.raises(ModelError, match=r"expected\.z is not an output"):
        _compared(config.inputs[0].model_copy(update={"expected": {"z": "twos.npy"}}), run)
    with pytest.raises(ModelError, match=r"expected\.y = 'more.npz\[c\]' cannot be read"):
        _compared(config.inputs[0].model_copy(update={"expected": {"y": "more.npz[c]"}}), run)


def _compared(asked: ValidationInput, run: Run) -> list[Check]:
    """What follows from outputs that are on disk already."""
    result = {"outputs": ["word", "y"]}
    return list(validation_inputs._checked("it", asked, result, run.folder / "outputs" / "0", {}, run))


def test_an_answer_that_is_not_the_expected_one_rejects_the_candidate(tmp_path: Path) -> None:
    """Through the stage's program, with tf.Examples: nothing is published."""
    np.save(tmp_path / "wrong.npy", np.array([[99]]))
    black = {"pixels": [0.0] * 64}
    asked = ValidationInput(
        signature="predict", input_examples=(f"examples=[{black}]",), expected={"class_ids": "wrong.npy"}
    )
    run = replace(trained_digits().run, source=tmp_path, folder=tmp_path)
    config = ValidationConfig(inputs=(asked,))
    with pytest.raises(Rejected) as caught:
        validate.run(ignore_progress, config, trained_digits().config.data, exported_digits(), run)
    assert "validation: validation.inputs[0] predict class_ids: output 'class_ids'" in caught.value.message
    assert [check.name for check in caught.value.checks if not check.passed] == [
        "validation.inputs[0] predict class_ids"
    ]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"signature": "predict"}, "give 'inputs', 'input_exprs' or 'input_examples'"),
        ({"inputs": ["x=a.npy"], "overwrite": True}, "'overwrite' is about an 'outdir' of yours"),
    ],
)
def test_what_the_configuration_refuses(tmp_path: Path, asked: dict[str, Any], message: str) -> None:
    """Before anything runs."""
    with pytest.raises(ConfigError, match=message):
        written(tmp_path, {"validation": {"inputs": [asked]}})
