"""Pipelines without a label: k-means by its Estimator, an embedding by a model_fn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from pipelines import run_of, written
from slipway_command import Slipway

from configs.loading.errors import ConfigError
from configs.loading.model_checks import require_buildable
from configs.loading.pipelines import Pipeline
from tasks.in_tensorflow import build, evaluate, export, ingest, train, validate
from tasks.processes.tensorflow_process import ignore_progress

CENTERS = np.array([[0, 0], [10, 0], [0, 10]], np.float32)
MODEL = """\
import tensorflow as tf

def kmeans(params, config):
    columns = [tf.feature_column.numeric_column("x", (2,))]
    return tf.compat.v1.estimator.experimental.KMeans(3, feature_columns=columns, config=config, seed=1)

def autoencoder(params, config):
    def model_fn(features, labels, mode):
        assert labels is None
        code = tf.compat.v1.layers.dense(features["x"], 1, name="code")
        errors = tf.reduce_sum((tf.compat.v1.layers.dense(code, 2) - features["x"]) ** 2, -1)
        loss = tf.reduce_mean(errors)
        step = tf.compat.v1.train.get_global_step()
        return tf.estimator.EstimatorSpec(
            mode, {"code": code}, loss, tf.compat.v1.train.AdamOptimizer(0.1).minimize(loss, step),
            {"error": tf.compat.v1.metrics.mean(errors)},
            {"serving_default": tf.estimator.export.PredictOutput({"code": code})},
        )
    return tf.estimator.Estimator(model_fn, config=config)
"""


def _pipeline(folder: Path, factory: str, metric: dict[str, Any], **changes: Any) -> Pipeline:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(1)
    with tf.io.TFRecordWriter(str(folder / "night.tfrecord")) as writer:
        for x in (CENTERS[generator.integers(3, size=600)] + generator.normal(size=(600, 2))).tolist():
            feature = {
                "x": tf.train.Feature(float_list=tf.train.FloatList(value=x)),
                "side": tf.train.Feature(int64_list=tf.train.Int64List(value=[int(x[0] > x[1])])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    (folder / "model.py").write_text(MODEL)
    data = {"files": ["*.tfrecord"], "features": {"x": "float32[2]", "side": "int64"}}
    config = {
        "data": data, "model": {"factory": f"model.py:{factory}"},
        "evaluation": {"thresholds": metric, "slices": ["side"]},
        "training": {"max_steps": 60, "batch_size": 64}, **changes,
    }  # fmt: skip
    return written(folder, config)


@pytest.mark.parametrize(
    ("factory", "metric"),
    [("kmeans", {"score": {"max": 60 * 60}}), ("autoencoder", {"error": {"max": 1000}})],
)
def test_it_trains_evaluates_exports_and_validates(
    tmp_path: Path, factory: str, metric: dict[str, Any]
) -> None:
    """Every program of a run, in this process."""
    pipeline = _pipeline(tmp_path / "pipeline", factory, metric)
    config, run = pipeline.config, run_of(pipeline, tmp_path / "runs")
    built = build.run(
        ignore_progress, config.model, config.training, config.evaluation, config.data, config.export, run
    )
    assert next(iter(metric)) in built.metrics
    run.folder.mkdir(parents=True)
    examples = ingest.run(ignore_progress, config.data, run)
    checkpoint = train.run(ignore_progress, config.model, config.training, config.data, examples, run)
    assert checkpoint.global_step == 60
    evaluated = evaluate.run(ignore_progress, config.recipe, config.answers, examples, checkpoint, run)
    assert evaluated.metrics[next(iter(metric))] > 0
    assert [part.examples for part in evaluated.slices] > [10, 10]
    assert all(part.metrics[next(iter(metric))] > 0 for part in evaluated.slices)
    candidate = export.run(
        ignore_progress, config.model, config.training, config.export, config.data, examples, checkpoint,
        config.answers, run,
    )  # fmt: skip
    validated = validate.run(ignore_progress, config.validation, config.data, candidate, run)
    assert validated.numbers > 0


def test_a_canned_estimator_needs_one(tmp_path: Path) -> None:
    """It is told by `slipway check`, with what may do without."""
    pipeline = _pipeline(tmp_path / "pipeline", "kmeans", {}, model={"estimator": "LinearClassifier"})
    with pytest.raises(ConfigError, match="LinearClassifier learns from a label") as refused:
        require_buildable(pipeline)
    assert "KMeans" in refused.value.hint


def test_clusters_are_deployed(slipway: Slipway, tmp_path: Path) -> None:
    """Through the command; the served model tells the three clusters apart."""
    pipeline = _pipeline(tmp_path / "pipeline", "kmeans", {"score": {"max": 60 * 60}})
    done = slipway.run(pipeline.folder)
    assert done.exit_code == 0, done.output
    asked = slipway("ask", pipeline.folder, "--count", "2")
    assert asked.exit_code == 0, asked.output
