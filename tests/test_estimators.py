"""Estimators from the YAML alone: canned ones, feature columns, factories; and what cannot be built."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from pipelines import run_of, written

from configs.schema.features import FeatureSpec
from configs.schema.pipeline import AnswersConfig, ValidationConfig
from tasks.core.artifacts import Candidate, Checkpoint, Examples, Run, Validation
from tasks.core.errors import EnvironmentFault, ModelError
from tasks.estimators import accelerators, assembly, canned_estimators
from tasks.examples.tf_examples import serialize, write_records
from tasks.in_tensorflow import export, ingest, train, validate
from tasks.processes.tensorflow_process import ignore_progress

PEOPLE = {
    "features": {
        "age": "float32",
        "income": "float32[2]",
        "rooms": "int64",
        "city": {"dtype": "string", "default": "?"},
        "street": {"dtype": "string", "default": "?"},
        "tags": "string[]",
    },
    "label": {"y": "int64"},
}
COLUMNS = [
    {"kind": "numeric", "key": "age", "mean": 40.0, "std": 20.0},
    {"kind": "bucketized", "key": "age", "boundaries": [18, 30, 65]},
    {"kind": "vocabulary", "key": "city", "values": ["Rome", "Oslo"], "num_oov_buckets": 1},
    {"kind": "vocabulary", "key": "tags", "file": "tags.txt"},
    {"kind": "hash_bucket", "key": "street", "buckets": 10},
    {"kind": "identity", "key": "rooms", "buckets": 8, "default": 0},
    {
        "kind": "crossed",
        "keys": ["city", {"kind": "bucketized", "key": "age", "boundaries": [30]}],
        "buckets": 20,
    },
]


def dnn(estimator: str = "DNNClassifier", **params: Any) -> dict[str, Any]:
    """The model slice of a small network."""
    return {"estimator": estimator, "params": {"hidden_units": [4], **params}}


def people(folder: Path, model: dict[str, Any], label: str = "int64", **config: Any) -> tuple[Any, Run]:
    """A pipeline about 200 people, whose y is whether they are over 50."""
    chance = random.Random(1)
    kinds = {
        "age": "float32",
        "income": "float32",
        "rooms": "int64",
        "city": "string",
        "tags": "string",
        "y": label,
    }
    specs = {name: FeatureSpec(dtype=kind) for name, kind in kinds.items()}
    records = []
    for _ in range(200):
        age = float(chance.randrange(90))
        values: dict[str, Any] = {
            "age": [age], "income": [chance.random(), 0.0], "rooms": [chance.randrange(8)],
            "city": [chance.choice([b"Rome", b"Oslo", b"Bonn"])], "y": [age > 50],
            "tags": chance.sample([b"red", b"tall", b"old"], chance.randrange(3)),
        }  # fmt: skip
        records.append(serialize(values, specs))
    folder.mkdir(exist_ok=True)
    write_records(folder / "people.tfrecord", records)
    (folder / "tags.txt").write_text("red\ntall\n")
    data = {"files": ["*.tfrecord"], **PEOPLE, "label": {"y": label}, "split": {"sample": 0.2}}
    pipeline = written(folder, {"data": data, "model": model, **config})
    return pipeline.config, run_of(pipeline, folder)


def trained(
    folder: Path, model: dict[str, Any], label: str = "int64"
) -> tuple[Any, Run, Examples, Checkpoint]:
    """Ingest and train it for two steps, in this process."""
    config, run = people(folder, model, label)
    examples = ingest.run(ignore_progress, config.data, run)
    checkpoint = train.run(ignore_progress, config.model, config.training, config.data, examples, run)
    return config, run, examples, checkpoint


def shipped(folder: Path, model: dict[str, Any], label: str = "int64") -> tuple[Candidate, Validation]:
    """Export and validate it as well, allowing for rounding: Eigen adds up some batches in another order."""
    config, run, examples, checkpoint = trained(folder, model, label)
    candidate = export.run(
        ignore_progress,
        config.model,
        config.training,
        config.export,
        config.data,
        examples,
        checkpoint,
        AnswersConfig(samples=20),
        run,
    )
    return candidate, validate.run(ignore_progress, ValidationConfig(), config.data, candidate)


def refused(folder: Path, model: dict[str, Any]) -> ModelError:
    """The error of building this model; nothing of it may be on disk."""
    config, run = people(folder, model)
    with pytest.raises(ModelError) as caught:
        assembly.build(config.model, config.training, config.data, run)
    assert not run.folder.exists()
    return caught.value


def test_every_canned_estimator_of_tensorflow_is_known() -> None:
    """tf.estimator has these twelve, and no BoostedTrees* any more."""
    roles = ("Classifier", "Regressor", "Estimator")
    there = {name for name in dir(tf.estimator) if name.endswith(roles) and name != "Estimator"}
    assert there == set(canned_estimators.CANNED)
    assert not any(name.startswith("BoostedTrees") for name in dir(tf.estimator))


@pytest.mark.parametrize("name", canned_estimators.CANNED)
def test_every_canned_estimator_trains_from_yaml_alone(tmp_path: Path, name: str) -> None:
    """Each with numeric columns of the features by default, and a head for the *Estimator ones."""
    params: dict[str, Any] = {}
    if name.startswith("DNNLinear"):
        params["dnn_hidden_units"] = [4]
    elif name.startswith("DNN"):
        params["hidden_units"] = [4]
    if name.endswith("Estimator"):
        params["head"] = {"name": "RegressionHead", "label_dimension": 1}
    label = "int64" if name.endswith("Classifier") else "float32"
    checkpoint = trained(tmp_path, {"estimator": name, "params": params}, label)[-1]
    assert checkpoint.global_step == 2
    assert Path(f"{checkpoint.prefix}.index").is_file()


def test_every_feature_column_is_trained_exported_and_validated(tmp_path: Path) -> None:
    """All kinds of columns in one wide and deep model; a vocabulary file travels as an asset."""
    dense = [COLUMNS[0], COLUMNS[1]] + [{"kind": "indicator", "of": column} for column in COLUMNS[2:4]]
    dense += [{"kind": "embedding", "of": column, "dimension": 2} for column in COLUMNS[4:]]
    model = {
        "estimator": "DNNLinearCombinedClassifier",
        "feature_columns": {"linear": COLUMNS, "dnn": dense},
        "params": {
            "dnn_hidden_units": [4, 2], "dnn_activation_fn": "tanh", "dnn_dropout": 0.1,
            "linear_optimizer": "Ftrl",
            "dnn_optimizer": {"name": "Adagrad", "learning_rate": 0.1, "clipnorm": 1.0},
        },
    }  # fmt: skip
    candidate, validation = shipped(tmp_path, model)
    assert (candidate.path / "assets" / "tags.txt").read_text() == "red\ntall\n"
    assert all(check.passed for check in validation.checks)
    names = {signature.name: signature.method for signature in candidate.signatures}
    assert names == {
        "serving_default": "classify", "classification": "classify", "regression": "regress",
        "predict": "predict",
    }  # fmt: skip


def test_several_heads_by_name(tmp_path: Path) -> None:
    """A MultiHead maps the name of each head to its mapping; its labels come as a dict."""
    heads = {"y": {"name": "BinaryClassHead"}, "z": {"name": "RegressionHead"}}
    head = canned_estimators._head("model.params.head", {"name": "MultiHead", "heads": heads})
    assert head.name == "y_z"


FACTORY = """
import tensorflow as tf

def build_estimator(params, config):
    def model_fn(features, labels, mode, config):
        age = tf.reshape(features["age"], [-1, 1])
        slope = tf.compat.v1.get_variable("slope", initializer=params["slope"])
        predictions = age * slope
        outputs = {
            "serving_default": tf.estimator.export.RegressionOutput(predictions),
            "everything": tf.estimator.export.PredictOutput({
                "double": predictions * 2, "shape/of": tf.shape(predictions)[1:],
                "version": tf.constant("v1"),
                "words": tf.as_string(age),
            }),
        }
        if mode == tf.estimator.ModeKeys.PREDICT:
            return tf.estimator.EstimatorSpec(mode, predictions={"p": predictions}, export_outputs=outputs)
        loss = tf.reduce_mean((predictions - tf.reshape(labels, [-1, 1])) ** 2)
        step = tf.compat.v1.train.get_or_create_global_step()
        train_op = tf.compat.v1.train.GradientDescentOptimizer(1e-6).minimize(loss, step)
        return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train_op)
    return tf.estimator.Estimator(model_fn, config=config)
"""


def test_a_factory_of_the_users_own(tmp_path: Path) -> None:
    """Any model_fn is exported and validated, whatever its outputs: batched, constant, strings."""
    (tmp_path / "model.py").write_text(FACTORY)
    candidate, validation = shipped(
        tmp_path, {"factory": "model.py:build_estimator", "params": {"slope": 0.5}}, "float32"
    )
    assert {signature.name: signature.method for signature in candidate.signatures} == {
        "serving_default": "regress", "everything": "predict",
    }  # fmt: skip
    everything = candidate.signatures[0].outputs
    assert everything["version"] == "string[]"
    assert validation.numbers > 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    return 3", "expected it to return a tf.estimator.Estimator, found int"),
        ("    pass", "expected it to return a tf.estimator.Estimator, found NoneType"),
        ("    raise KeyError('units')", "failed: KeyError: 'units'"),
        (
            "    import tensorflow as tf\n"
            "    return tf.estimator.LinearRegressor([], model_dir='/tmp/elsewhere')",
            "the Estimator's model_dir is /tmp/elsewhere, expected ",
        ),
    ],
)
def test_a_factory_that_returns_no_estimator(tmp_path: Path, body: str, message: str) -> None:
    """What it returned or raised is told, before anything is on disk."""
    (tmp_path / "model.py").write_text(f"def build(params, config):\n{body}\n")
    error = refused(tmp_path, {"factory": "model.py:build"})
    assert error.message.startswith(
        f"model.factory = 'model.py:build'{' ' if 'failed' in message else ': '}{message}"
    )
    assert error.hint


def test_a_factory_that_does_not_import(tmp_path: Path) -> None:
    """A ModelError names file and line."""
    (tmp_path / "model.py").write_text("import no_such_module\n")
    error = refused(tmp_path, {"factory": "model.py:build"})
    assert f"No module named 'no_such_module' ({tmp_path / 'model.py'}:1)" in error.message


@pytest.mark.parametrize(
    ("model", "message", "hint"),
    [
        ({"estimator": "DNNClasifier"}, "model.estimator = 'DNNClasifier' is not", "'DNNClassifier'"),
        ({"estimator": "BoostedTreesClassifier"}, "is not a canned Estimator", "did you mean"),
        (
            {"estimator": "DNNClassifier"},
            "model.params.hidden_units is required by DNNClassifier", "tf.estimator",
        ),
        (
            dnn(nclasses=3),
            "model.params.nclasses: DNNClassifier has no such argument", "did you mean 'n_classes'?",
        ),
        (
            dnn(model_dir="/tmp/x"),
            "model.params.model_dir: DNNClassifier has no such argument", "",
        ),
        (
            dnn(feature_columns=[]),
            "model.params.feature_columns is set by Slipway", "model.feature_columns",
        ),
        (
            dnn(optimizer="Adem"),
            "model.params.optimizer: expected a name", "did you mean 'Adam'?",
        ),
        (
            dnn(optimizer={"name": "Adam", "learningrate": 1.0}),
            "model.params.optimizer.learningrate: Adam has no such argument", "'learning_rate'",
        ),
        (
            dnn(optimizer={"name": "Adam", "learning_rate": "1e-3"}),
            "model.params.optimizer.learning_rate: expected a number, found the text '1e-3'", "1.0e-3",
        ),
        (
            dnn(activation_fn="rellu"),
            "model.params.activation_fn = 'rellu' is not a function of tf.nn", "'relu'",
        ),
        (
            dnn("DNNEstimator", head={"name": "MulticlassHed"}),
            "model.params.head: expected a name", "'MultiClassHead'",
        ),
        (
            dnn("DNNEstimator", head={"name": "MultiClassHead", "n_classes": 1}),
            "model.params.head: MultiClassHead refuses its arguments: n_classes must be", "",
        ),
        (
            {"estimator": "BaselineClassifier", "feature_columns": COLUMNS[:1]},
            "model.feature_columns: BaselineClassifier takes none", "remove them",
        ),
        (
            {"estimator": "DNNLinearCombinedRegressor", "feature_columns": COLUMNS[:1]},
            "model.feature_columns: DNNLinearCombinedRegressor takes a mapping", "",
        ),
        (
            {"estimator": "LinearClassifier", "feature_columns": {"linear": COLUMNS[:1]}},
            "model.feature_columns: LinearClassifier takes a list", "",
        ),
        (
            {"estimator": "LinearClassifier", "feature_columns": [{"kind": "numeric", "key": "agee"}]},
            "model.feature_columns: 'agee' is not one of data.features: age, income", "did you mean 'age'?",
        ),
        (
            {"estimator": "LinearClassifier", "feature_columns": [{"kind": "numeric", "key": "city"}]},
            "'city': expected a feature of dtype float32 or int64, found string", "another kind of column",
        ),
        (
            {"estimator": "LinearClassifier",
             "feature_columns": [{"kind": "vocabulary", "key": "city", "file": "cities.txt"}]},
            "vocabulary of 'city': no such file: ", "relative to the YAML",
        ),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_built(tmp_path: Path, model: dict[str, Any], message: str, hint: str) -> None:
    """The key, what is wrong with it, and the near name."""
    error = refused(tmp_path, model)
    assert message in error.message
    assert hint in error.hint


def test_no_numeric_feature_and_no_columns(tmp_path: Path) -> None:
    """Without feature_columns there must be something numeric to take."""
    data = {"files": ["*"], "features": {"city": "string"}, "label": {"y": "int64"}}
    pipeline = written(tmp_path, {"data": data})
    with pytest.raises(ModelError, match=r"none of city is numeric") as caught:
        assembly.build(
            pipeline.config.model, pipeline.config.training, pipeline.config.data, run_of(pipeline, tmp_path)
        )
    assert "model.feature_columns" in caught.value.hint


def test_the_run_config_is_that_of_the_yaml(tmp_path: Path) -> None:
    """Every key about saving, logging and chance reaches the Estimator."""
    training = {
        "save_checkpoints_secs": 30, "keep_checkpoint_max": 0, "keep_checkpoint_every_n_hours": 2,
        "log_every_steps": 7, "seed": 3,
    }  # fmt: skip
    config, run = people(tmp_path, {"estimator": "LinearClassifier"}, training=training)
    built = assembly.build(config.model, config.training, config.data, run).config
    assert (built.save_checkpoints_secs, built.save_checkpoints_steps) == (30, None)
    assert (built.keep_checkpoint_max, built.keep_checkpoint_every_n_hours) == (0, 2)
    assert (built.log_step_count_steps, built.save_summary_steps, built.tf_random_seed) == (7, 7, 3)
    assert built.model_dir == str(run.model_dir)


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there() -> None:
    """`accelerator: gpu` is refused before anything else."""
    with pytest.raises(EnvironmentFault, match="TensorFlow finds no GPU") as caught:
        accelerators.claim("gpu")
    assert "nvidia-smi" in caught.value.hint


def test_a_session_on_the_cpu_sees_no_gpu() -> None:
    """`cpu` hides GPUs from the sessions of Estimators, which do not read tf.config."""
    config = accelerators.claim("cpu")
    assert config.device_count["GPU"] == 0
