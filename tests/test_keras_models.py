"""Keras models by `tf.keras.estimator.model_to_estimator`: steps, resumption, warm start, SavedModel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from pipelines import run_of, written

from configs.loading.pipelines import Pipeline
from configs.schema.features import FeatureSpec
from configs.schema.pipeline import AnswersConfig
from tasks.core.artifacts import Checkpoint, Examples, Run
from tasks.estimators import checkpoints
from tasks.examples.tf_examples import serialize, write_records
from tasks.exports import extra_assets
from tasks.in_tensorflow import export, ingest, train
from tasks.processes.tensorflow_process import ignore_progress

MODEL = """
import tensorflow as tf

def build(params, config):
    tf.keras.backend.clear_session()
    x = tf.keras.Input((2,), name="x")
    hidden = tf.keras.layers.Dense(4, activation="relu", name="hidden")(x)
    model = tf.keras.Model(x, tf.keras.layers.Dense(1, name="out")(hidden))
    model.compile(optimizer=tf.keras.optimizers.legacy.Adam(0.01), loss="mse")
    return tf.keras.estimator.model_to_estimator(
        model, config=config, checkpoint_format=params["checkpoint_format"]
    )
"""


def _pipeline(folder: Path, checkpoint_format: str, **training: Any) -> Pipeline:
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(MODEL)
    specs = {"x": FeatureSpec(dtype="float32", shape=(2,)), "y": FeatureSpec(dtype="float32")}
    records = [serialize({"x": [n / 64, 1.0], "y": [n / 32]}, specs) for n in range(64)]
    write_records(folder / "some.tfrecord", records)
    data = {
        "files": ["*.tfrecord"], "features": {"x": "float32[2]"}, "label": {"y": "float32"},
        "split": {"sample": 0.2},
    }  # fmt: skip
    model = {"factory": "model.py:build", "params": {"checkpoint_format": checkpoint_format}}
    return written(
        folder, {"data": data, "model": model, "training": {"max_steps": 3, "batch_size": 8, **training}}
    )


def _trained(pipeline: Pipeline, run: Run) -> tuple[Examples, Checkpoint]:
    config = pipeline.config
    examples = ingest.run(ignore_progress, config.data, run)
    return examples, train.run(ignore_progress, config.model, config.training, config.data, examples, run)


@pytest.mark.parametrize("checkpoint_format", ["checkpoint", "saver"])
def test_the_step_is_the_one_that_training_ended_at(tmp_path: Path, checkpoint_format: str) -> None:
    """In the checkpoint, its summary, and the manifest of the SavedModel; and resumed training adds to it."""
    pipeline = _pipeline(tmp_path / "keras", checkpoint_format)
    run = run_of(pipeline, tmp_path)
    examples, first = _trained(pipeline, run)
    assert (first.resumed_from, first.global_step) == (0, 3)
    more = _pipeline(tmp_path / "keras", checkpoint_format, max_steps=5).config
    resumed = train.run(ignore_progress, more.model, more.training, more.data, examples, run)
    assert (resumed.resumed_from, resumed.global_step) == (3, 5)
    candidate = export.run(
        ignore_progress,
        more.model,
        more.training,
        more.export,
        more.data,
        examples,
        resumed,
        AnswersConfig(samples=8),
        run,
    )
    assert extra_assets.read_manifest(candidate.path)["checkpoint_step"] == 5


@pytest.mark.parametrize("checkpoint_format", ["checkpoint", "saver"])
@pytest.mark.parametrize("source", ["checkpoint", "SavedModel"])
def test_a_warm_start_is_by_the_names_of_the_variables(
    tmp_path: Path, checkpoint_format: str, source: str
) -> None:
    """Whatever keys the checkpoint has for them; the optimizer's variables and the step begin afresh."""
    before = _pipeline(tmp_path / "before", checkpoint_format)
    run = run_of(before, tmp_path, "before")
    examples, checkpoint = _trained(before, run)
    path = checkpoint.prefix
    if source == "SavedModel":
        config = before.config
        path = export.run(
            ignore_progress, config.model, config.training, config.export, config.data, examples,
            checkpoint, AnswersConfig(samples=8), run,
        ).path  # fmt: skip
    pipeline = _pipeline(
        tmp_path / "after", checkpoint_format, max_steps=1,
        warm_start={"from": str(path), "exclude": ["out/"]},
    )  # fmt: skip
    after = run_of(pipeline, tmp_path, "after")
    _, warm = _trained(pipeline, after)
    assert warm.global_step == 1
    assert "2 of 4 variables warm-started" in " ".join(warm.notes)
    old, new = (_values(prefix)["hidden/kernel"] for prefix in (checkpoint.prefix, warm.prefix))
    # One step of Adam moves each weight by its learning rate, 0.01, at most.
    assert np.abs(new - old).max() < 0.02


def _values(prefix: Path) -> dict[str, Any]:
    reader = tf.train.load_checkpoint(str(prefix))
    return {name: reader.get_tensor(key) for name, key in checkpoints.keys(reader).items()}
