"""`slipway inspect`: checkpoints and SavedModels, as TensorFlow's own tools show them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pipelines import exported_digits, trained_digits
from slipway_command import Slipway

from tasks.core.errors import ConfigError, ModelError
from tasks.in_tensorflow import inspect as program
from tasks.processes.tensorflow_process import ignore_progress


def test_a_checkpoint(home: Path) -> None:
    """The command says what it is; each variable has dtype and shape, values where they are asked for."""
    checkpoint = trained_digits().checkpoint.prefix
    shown = Slipway(home, None)("inspect", checkpoint, "--values", "dnn/logits/bias", "global_step")
    assert shown.exit_code == 0, shown.output
    first, *lines = shown.output.splitlines()
    assert first == f"{checkpoint} is a checkpoint"
    assert "tensor: dnn/hiddenlayer_0/kernel (float32) [64, 64]" in lines
    assert any(line.startswith("# Total number of params: ") for line in lines)
    assert lines[lines.index("tensor: global_step (int64) []", 20) + 1] == "300"


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001", ".meta"])
def test_any_file_of_a_checkpoint_means_it(suffix: str) -> None:
    """So does its model_dir."""
    checkpoint = trained_digits().checkpoint.prefix
    named = program.run(ignore_progress, Path(f"{checkpoint}{suffix}"))
    assert named == program.run(ignore_progress, checkpoint.parent)
    assert named.path == checkpoint


def test_a_saved_model() -> None:
    """Tag sets, every SignatureDef, the assets; values of its variables."""
    shown = program.run(ignore_progress, exported_digits().path, ["dnn/logits/bias"])
    assert shown.kind == "SavedModel"
    assert "MetaGraphDef with tag-set: 'serve'" in shown.text
    assert "signature_def['serving_default']:" in shown.text
    assert "assets: none" in shown.text
    assert "tensor: dnn/logits/bias (float32) [10]\n[" in shown.text


def test_what_is_neither(tmp_path: Path) -> None:
    """The path is named, and what to name instead."""
    with pytest.raises(ConfigError, match=f"{tmp_path} is neither a checkpoint nor a SavedModel"):
        program.run(ignore_progress, tmp_path)


def test_a_variable_that_is_not_there() -> None:
    """The nearest name is suggested."""
    with pytest.raises(ConfigError, match="has no variable 'dnn/logit/bias'") as caught:
        program.run(ignore_progress, trained_digits().checkpoint.prefix, ["dnn/logit/bias"])
    assert caught.value.hint == "did you mean 'dnn/logits/bias'?"


def test_a_damaged_checkpoint(tmp_path: Path) -> None:
    """It is told as one, and not shown half."""
    for file in trained_digits().run.model_dir.glob("model.ckpt-300.*"):
        shutil.copy(file, tmp_path)
    data = tmp_path / "model.ckpt-300.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ModelError, match="is a damaged checkpoint: "):
        program.run(ignore_progress, tmp_path / "model.ckpt-300")
