"""What `slipway check` finds in `model` without TensorFlow; and that it knows what TensorFlow has."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from slipway_command import REPOSITORY

from configs.loading import canned
from configs.loading.errors import ConfigError
from configs.loading.model_checks import require_buildable
from configs.loading.pipelines import load_pipeline
from flows.command.cli import main

DATA = {
    "files": ["*.tfrecord"],
    "features": {
        "age": "float32", "rooms": "int64", "city": "string", "tags": "string[]",
        "list": {"dtype": "int64", "kind": "ragged"},
    },
    "label": {"y": "int64"},
}  # fmt: skip


def _problem(folder: Path, model: dict[str, Any], **config: Any) -> ConfigError:
    file = folder / "pipeline.yaml"
    document = {"name": "small", "data": DATA, "model": model, **config}
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    with pytest.raises(ConfigError) as caught:
        require_buildable(load_pipeline(folder))
    place = caught.value.message.partition(": '")[0]
    assert re.fullmatch(rf"{re.escape(str(file))}:\d+:\d+", place)
    return caught.value


def _columns(*columns: dict[str, Any]) -> dict[str, Any]:
    return {"estimator": "LinearClassifier", "feature_columns": list(columns)}


def _dnn(**params: Any) -> dict[str, Any]:
    return {"estimator": "DNNClassifier", "params": {"hidden_units": [4], **params}}


def _headed(head: Any) -> dict[str, Any]:
    return {"estimator": "LinearEstimator", "params": {"head": head}}


MISTAKES = [
    ({"estimator": "DNNClasifier"}, "model.estimator", "is not a canned Estimator", "'DNNClassifier'"),
    ({"estimator": "BoostedTreesClassifier"}, "model.estimator", "is not a canned Estimator", ""),
    ({"estimator": "DNNClassifier"}, "model.params", "DNNClassifier needs 'hidden_units'", "tf.estimator"),
    ({"estimator": "LinearEstimator"}, "model.params", "LinearEstimator needs 'head'", "tf.estimator"),
    (_dnn(hiden_units=[4]), "model.params.hiden_units", "has no such argument", "'hidden_units'"),
    (_dnn(model_dir="/x"), "model.params.model_dir", "has no such argument", ""),
    (_dnn(feature_columns=[]), "model.params.feature_columns", "Slipway sets it", "model.feature_columns"),
    (_dnn(weight_column="agee"), "model.params.weight_column", "is not one of data.features", "'age'"),
    (_dnn(optimizer="Adem"), "model.params.optimizer", "expected a name", "'Adam'"),
    (_dnn(optimizer={"learning_rate": 0.1}), "model.params.optimizer", "expected a name", "there are"),
    (
        _dnn(optimizer={"name": "Adam", "learningrate": 0.1}),
        "model.params.optimizer.learningrate", "Adam has no such argument", "'learning_rate'",
    ),
    (
        _dnn(optimizer={"name": "adam", "learning_rate": "1e-3"}),
        "model.params.optimizer.learning_rate", "found the text '1e-3'", "1.0e-3",
    ),
    (_headed("MulticlassHed"), "model.params.head", "expected a name", "'MultiClassHead'"),
    (_headed("MultiClassHead"), "model.params.head", "MultiClassHead needs 'n_classes'", "tf.estimator"),
    (
        _headed({"name": "RegressionHead", "dimension": 1}),
        "model.params.head.dimension", "RegressionHead has no such argument", "'label_dimension'",
    ),
    (
        _headed({"name": "MultiHead", "heads": {"y": "BinaryHead"}}),
        "model.params.head.heads.y", "expected a name", "'BinaryClassHead'",
    ),
    (
        {"estimator": "BaselineClassifier", "feature_columns": [{"kind": "numeric", "key": "age"}]},
        "model.feature_columns", "BaselineClassifier takes none", "remove them",
    ),
    (
        {"estimator": "DNNLinearCombinedClassifier", "feature_columns": [{"kind": "numeric", "key": "age"}]},
        "model.feature_columns", "takes a mapping {linear: [...], dnn: [...]}", "",
    ),
    (
        {"estimator": "LinearClassifier", "feature_columns": {"dnn": [{"kind": "numeric", "key": "age"}]}},
        "model.feature_columns", "takes a list", "",
    ),
    (
        _columns({"kind": "numeric", "key": "rooms"}, {"kind": "numeric", "key": "agee"}),
        "model.feature_columns.1.key", "'agee' is not one of data.features", "'age'",
    ),
    (
        _columns({"kind": "numeric", "key": "city"}),
        "model.feature_columns.0.key", "kind numeric takes a feature of float32 or int64", "another kind",
    ),
    (
        _columns({"kind": "identity", "key": "age", "buckets": 3}),
        "model.feature_columns.0.key", "kind identity takes a feature of int64", "another kind",
    ),
    (
        _columns({"kind": "hash_bucket", "key": "list", "buckets": 3}),
        "model.feature_columns.0.key", "'list' is ragged", "var_len",
    ),
    (
        _columns({"kind": "crossed", "keys": ["city", "room"], "buckets": 9}),
        "model.feature_columns.0.keys.1", "'room' is not one of data.features", "'rooms'",
    ),
    (
        _columns({"kind": "indicator", "of": {"kind": "hash_bucket", "key": "town", "buckets": 9}}),
        "model.feature_columns.0.of.key", "'town' is not one of data.features", "",
    ),
    (
        _columns({"kind": "crossed", "buckets": 9,
                  "keys": ["city", {"kind": "bucketized", "key": "ages", "boundaries": [1]}]}),
        "model.feature_columns.0.keys.1.key", "'ages' is not one of data.features", "'age'",
    ),
    (
        _columns({"kind": "vocabulary", "key": "city", "file": "cities.txt"}),
        "model.feature_columns.0.file", "no such file: ", "relative to the YAML",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("model", "keys", "message", "hint"), MISTAKES)
def test_a_mistake_in_the_model(
    tmp_path: Path, model: dict[str, Any], keys: str, message: str, hint: str
) -> None:
    """File, line and column; the key, what is wrong, and the near name."""
    error = _problem(tmp_path, model)
    assert f": '{keys}': " in error.message
    assert message in error.message
    assert hint in error.hint


def test_the_line_is_that_of_the_key(tmp_path: Path) -> None:
    """Not that of the section."""
    error = _problem(tmp_path, _columns({"kind": "numeric", "key": "rooms"}, {"kind": "numeric", "key": "x"}))
    lines = (tmp_path / "pipeline.yaml").read_text().splitlines()
    line = int(error.message.split(":")[1])
    assert lines[line - 1].strip() == "key: x"


def test_no_column_could_be_made_by_default(tmp_path: Path) -> None:
    """Without feature_columns there must be something numeric."""
    data = {**DATA, "features": {"city": "string"}}
    assert (
        "none of city is numeric" in _problem(tmp_path, {"estimator": "LinearClassifier"}, data=data).message
    )


def test_sparse_features_cannot_be_served_raw(tmp_path: Path) -> None:
    """`tags` has any number of values."""
    error = _problem(tmp_path, {"estimator": "LinearClassifier"}, export={"receivers": ["raw"]})
    assert "'export.receivers': raw takes dense tensors, and the feature 'tags' is var_len" in error.message


def test_what_preprocessing_makes_is_not_guessed(tmp_path: Path) -> None:
    """A column may be of a feature that only `model.preprocess` makes."""
    model = {**_columns({"kind": "numeric", "key": "made"}), "preprocess": "model.py:preprocess"}
    document = {"name": "small", "data": DATA, "model": model}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(document))
    require_buildable(load_pipeline(tmp_path))


@pytest.mark.parametrize("command", ["check", "plan", "run"])
def test_every_command_that_begins_with_the_configuration_finds_it(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, before anything is started."""
    _problem(tmp_path, {"estimator": "DNNClasifier"})
    assert main([command, str(tmp_path)]) == 2
    assert "did you mean 'DNNClassifier'?" in capsys.readouterr().err


def test_the_examples_have_no_mistake() -> None:
    """Every pipeline in configs/."""
    found = sorted((REPOSITORY / "configs").glob("*/pipeline.yaml"))
    assert len(found) > 5
    for file in found:
        require_buildable(load_pipeline(file))


class TestTables:
    """configs/loading/canned.py against TensorFlow."""

    @staticmethod
    def _parameters(function: Any) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(function).parameters)

    def test_estimators(self) -> None:
        """Their arguments but those that Slipway sets, and which have no default."""
        import tensorflow as tf

        ours = {*canned.COLUMN_PARAMETERS, "model_dir", "config"}
        for name, known in canned.ESTIMATORS.items():
            found = self._parameters(getattr(tf.estimator, name))
            assert set(known) == set(found) - ours, name
            required = {key for key, each in found.items() if each.default is each.empty} - ours
            assert required == set(known) & set(canned.REQUIRED), name

    def test_heads(self) -> None:
        """All seven."""
        import tensorflow as tf

        assert set(canned.HEADS) == {name for name in dir(tf.estimator) if name.endswith("Head")} - {"Head"}
        for name, known in canned.HEADS.items():
            found = self._parameters(getattr(tf.estimator, name))
            assert set(known) == set(found), name
            required = [key for key, each in found.items() if each.default is each.empty]
            assert required == [key for head, key in canned.REQUIRED_OF_HEADS.items() if head == name]

    def test_optimizers(self) -> None:
        """Keras's legacy ones."""
        import tensorflow as tf

        legacy = tf.keras.optimizers.legacy
        there = {name for name, each in vars(legacy).items() if isinstance(each, type)} - {"Optimizer"}
        assert set(canned.OPTIMIZERS) == there
        for name, known in canned.OPTIMIZERS.items():
            assert set(known) == set(self._parameters(getattr(legacy, name))) - {"name", "kwargs"}, name
