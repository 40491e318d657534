"""What only TensorFlow knows of a model: `slipway check --build`, and preflight, before ingestion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pipelines import run_of, written
from slipway_command import DIGITS, REPOSITORY, Slipway

from configs.loading.pipelines import Pipeline, load_pipeline
from flows.command.cli import main
from tasks import preflight
from tasks.core.artifacts import BuiltModel
from tasks.core.errors import ConfigError, ModelError, SlipwayError
from tasks.in_tensorflow import build
from tasks.processes import tensorflow_process
from tasks.processes.tensorflow_process import ignore_progress

FEATURES = {"age": "float32", "city": "string"}
MODEL = """
import tensorflow as tf

def build(params, config):
    def model_fn(features, labels, mode):
        slope = tf.compat.v1.get_variable("slope", [params.get("w", 1), 1])
        outputs = tf.reshape(features["age"], [-1, 1]) @ slope
        if mode == tf.estimator.ModeKeys.PREDICT:
            exported = {"serving_default": tf.estimator.export.RegressionOutput(outputs)}
            return tf.estimator.EstimatorSpec(mode, predictions=outputs, export_outputs=exported)
        loss = tf.reduce_mean(tf.square(outputs - tf.cast(labels, tf.float32)))
        step = tf.compat.v1.train.get_global_step()
        train_op = tf.compat.v1.train.GradientDescentOptimizer(0.1).minimize(loss, step)
        return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train_op)
    return tf.estimator.Estimator(model_fn, config=config)
"""


def _pipeline(folder: Path, model: dict[str, Any], **config: Any) -> Pipeline:
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(MODEL)
    data = {"files": ["*.tfrecord"], "features": FEATURES, "label": {"y": "int64"}}
    return written(folder, {"data": data, "model": model, **config})


def _built(pipeline: Pipeline, folder: Path) -> BuiltModel:
    config, run = pipeline.config, run_of(pipeline, folder)
    built = build.run(
        ignore_progress, config.model, config.training, config.evaluation, config.data, config.export, run
    )
    assert not run.folder.exists()
    return built


@pytest.mark.parametrize(
    "file", sorted((REPOSITORY / "configs").glob("*/pipeline.yaml")), ids=lambda f: f.parent.name
)
def test_every_example_builds(tmp_path: Path, file: Path) -> None:
    """Canned Estimators, factories, heads, raw receivers and graphs; nothing is on disk afterwards."""
    built = _built(load_pipeline(file), tmp_path)
    assert built.variables > 0 and built.signatures
    assert {"loss", "global_step"} <= set(built.metrics)


def test_a_keras_model_builds_and_leaves_no_checkpoint(tmp_path: Path) -> None:
    """model_to_estimator writes into its model_dir."""
    pipeline = _pipeline(tmp_path / "keras", {"factory": "keras.py:build"})
    (pipeline.folder / "keras.py").write_text(
        "import tensorflow as tf\n"
        "def build(params, config):\n"
        "    age = tf.keras.Input((1,), name='age')\n"
        "    model = tf.keras.Model(age, tf.keras.layers.Dense(1)(age))\n"
        "    model.compile(optimizer=tf.keras.optimizers.legacy.SGD(), loss='mse', metrics=['mae'])\n"
        "    return tf.keras.estimator.model_to_estimator(model, config=config)\n"
    )
    pipeline = _pipeline(
        tmp_path / "keras", {"factory": "keras.py:build", "preprocess": "only_age.py:preprocess"}
    )
    (pipeline.folder / "only_age.py").write_text(
        "import tensorflow as tf\n"
        "def preprocess(features):\n    return {'age': tf.reshape(features['age'], [-1, 1])}\n"
    )
    assert "mae" in _built(pipeline, tmp_path).metrics


CITY = {"kind": "vocabulary", "key": "city", "values": ["Rome"]}
MISTAKES = [
    (
        {"estimator": "DNNClassifier", "params": {"hidden_units": [4]}, "feature_columns": [CITY]}, {},
        ModelError, "the graph for training cannot be built: ValueError: Items of feature_columns must be",
    ),
    (
        {"estimator": "LinearClassifier",
         "feature_columns": [CITY, {"kind": "hash_bucket", "key": "city", "buckets": 3}]}, {},
        ModelError, "Duplicate feature column name found",
    ),
    (
        {"estimator": "DNNClassifier", "params": {"hidden_units": [4], "activation_fn": "rellu"}}, {},
        ModelError, "model.params.activation_fn = 'rellu' is not a function of tf.nn",
    ),
    (
        {"factory": "model.py:build", "params": {"w": 3}}, {},
        ModelError, "the graph for training cannot be built: ValueError: Dimensions must be equal",
    ),
    (
        {"factory": "model.py:build"}, {"export": {"receivers": ["raw"]}},
        ModelError, "no signature of the model could be served",
    ),
    (
        {"estimator": "LinearClassifier"}, {"evaluation": {"thresholds": {"acuracy": {"min": 0.9}}}},
        ConfigError, "evaluation.thresholds: the model reports no metric 'acuracy'",
    ),
    (
        {"estimator": "LinearRegressor"},
        {"training": {"best_checkpoint": {"metric": "accuracy", "goal": "max"}, "max_steps": 1}},
        ConfigError, "training.best_checkpoint.metric: the model reports no metric 'accuracy'",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "config", "kind", "message"), MISTAKES,
    ids=["sparse in DNN", "duplicate", "activation", "shapes", "no signature", "threshold", "best"],
)  # fmt: skip
def test_a_mistake_that_only_tensorflow_knows(
    tmp_path: Path, model: dict[str, Any], config: dict[str, Any], kind: type[SlipwayError], message: str
) -> None:
    """Found without an example."""
    with pytest.raises(kind) as caught:
        _built(_pipeline(tmp_path / "small", model, **config), tmp_path)
    assert message in caught.value.message
    assert caught.value.hint


def test_a_failing_model_fn_is_located(tmp_path: Path) -> None:
    """In the user's own file, by its line."""
    pipeline = _pipeline(tmp_path / "small", {"factory": "model.py:build", "params": {"w": 3}})
    with pytest.raises(ModelError) as caught:
        _built(pipeline, tmp_path)
    line = next(number for number, text in enumerate(MODEL.splitlines(), 1) if "@ slope" in text)
    assert caught.value.message.endswith(f"({pipeline.folder}/model.py:{line})")


def test_check_build_says_what_was_built(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    """Variables and signatures; nothing is written."""
    assert main(["check", str(DIGITS), "--build"]) == 0
    assert "is valid; the model builds: 6 variables, " in capsys.readouterr().out
    assert not home.exists()
    assert main(["check", str(DIGITS), "--build", "--set", "evaluation.thresholds.auc.min=0.5"]) == 2
    assert "evaluation.thresholds: the model reports no metric 'auc'" in capsys.readouterr().err


def test_what_a_model_leaves_behind_does_not_reach_the_next_process(tmp_path: Path) -> None:
    """TensorFlow is imported once for all calls, and yet each has a process of its own."""
    pipeline = load_pipeline(DIGITS)
    run = run_of(pipeline, tmp_path)
    server = tensorflow_process.prepare()
    built = [
        preflight.build_model(pipeline.config.recipe, pipeline.config.export, run, run.log("preflight"))
        for _ in range(2)
    ]
    assert built[0] == built[1]
    model = pipeline.config.model.model_copy(update={"estimator": "DNNClasifier"})
    bad = pipeline.config.recipe.model_copy(update={"model": model})
    with pytest.raises(ModelError):
        preflight.build_model(bad, pipeline.config.export, run, run.log("preflight"))
    assert tensorflow_process.prepare() is server
    tensorflow_process.close()


def test_a_run_ends_before_ingestion(slipway: Slipway) -> None:
    """In preflight, with the exit code of a wrong configuration."""
    ended = slipway.run(DIGITS, "evaluation.thresholds.auc.min=0.5")
    assert ended.exit_code == 2, ended.output
    assert [stage["name"] for stage in ended.verdict["stages"]] == ["recover", "preflight"]
    assert "reports no metric 'auc'" in ended.verdict["error"]["message"]
