"""`model.saved_model`: SavedModels that somebody else trained, through the programs of a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
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
from flows.command.cli import main
from tasks.core.artifacts import Candidate, Evaluation, Examples, Run
from tasks.core.errors import ModelError
from tasks.evaluations import given_metrics
from tasks.exports import extra_assets
from tasks.in_tensorflow import build, evaluate, export, ingest, train, validate

WEIGHTS = np.array([[1.0, -1.0], [-2.0, 2.0]], np.float32)
"""x to two logits: class 1 where x[1] is more than x[0] / 2, as the label says."""


def _nothing(_: Any) -> None:
    pass


def _examples(folder: Path) -> None:
    generator = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / "night.tfrecord")) as writer:
        for x in generator.normal(size=(400, 2)).astype(np.float32):
            feature = {
                "x": tf.train.Feature(float_list=tf.train.FloatList(value=x)),
                "y": tf.train.Feature(int64_list=tf.train.Int64List(value=[int(x[1] > x[0] / 2)])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())


def _keras(folder: Path, weights: Any = WEIGHTS, activation: str | None = "softmax") -> Path:
    """Save a Keras model as `model.save` does: its signature takes x."""
    inputs = tf.keras.Input((2,), name="x")
    outputs = tf.keras.layers.Dense(weights.shape[1], activation, use_bias=False, name="out")(inputs)
    model = tf.keras.Model(inputs, outputs)
    model.layers[-1].set_weights([weights])
    model.save(folder, save_format="tf")
    return folder


def _module(folder: Path) -> Path:
    """Save a tf.Module whose signature takes serialized tf.Examples, and answers with classes too."""

    class Parsing(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = tf.Variable(WEIGHTS)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def answer(self, examples: Any) -> Any:
            parsed = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([2], tf.float32)})
            logits = tf.matmul(parsed["x"], self.weights)
            return {"logits": logits, "chosen": tf.argmax(logits, -1)}

    module = Parsing()
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.answer})
    return folder


def _graph(folder: Path) -> Path:
    """Save a graph of TensorFlow 1: placeholders and a Saver."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [None, 2], "x")
        logits = tf.matmul(x, tf.compat.v1.get_variable("w", initializer=WEIGHTS))
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(session, str(folder), {"x": x}, {"logits": logits})
    return folder


def _pipeline(folder: Path, **changes: Any) -> Pipeline:
    _examples(folder)
    config: dict[str, Any] = {
        "name": "given", "model": {"saved_model": "model"},
        "evaluation": {"thresholds": {"accuracy": {"min": 0.9}}, "slices": ["y"]},
    }  # fmt: skip
    data = {"files": ["*.tfrecord"], "features": {"x": "float32[2]"}, "label": {"y": "int64"}}
    return written(folder, {"training": {}, "data": data, **config, **changes})


def _through(pipeline: Pipeline, tmp_path: Path) -> tuple[Run, Examples, Evaluation, Candidate]:
    """Ingest, take, evaluate and export, as the stages do."""
    config, run = pipeline.config, run_of(pipeline, tmp_path / "runs")
    run.folder.mkdir(parents=True)
    recipe = config.recipe
    examples = ingest.run(_nothing, config.data, run)
    checkpoint = train.run(_nothing, config.model, config.training, config.data, examples, run)
    evaluated = evaluate.run(_nothing, recipe, config.answers, examples, checkpoint, run)
    candidate = export.run(
        _nothing, config.model, config.training, config.export, config.data, examples, checkpoint,
        config.answers, run, evaluated.metrics,
    )  # fmt: skip
    return run, examples, evaluated, candidate


class TestThroughTheStages:
    """Keras, a tf.Module and a graph of TensorFlow 1."""

    @pytest.mark.parametrize("save", [_keras, _module, _graph])
    def test_it_is_evaluated_and_exported_as_it_is(
        self, tmp_path: Path, save: Callable[[Path], Path]
    ) -> None:
        """Metrics by slice, the same bytes, a manifest, and answers that a fresh process repeats."""
        pipeline = _pipeline(tmp_path / "pipeline")
        given = save(pipeline.folder / "model")
        run, _, evaluated, candidate = _through(pipeline, tmp_path)
        assert evaluated.metrics["accuracy"] > 0.95
        assert 0 < evaluated.metrics["average_loss"] < 1
        assert {part.value for part in evaluated.slices} == {"0", "1"}
        assert [picture.file.name for picture in evaluated.pictures] == ["confusion-y.svg"]
        for name in ("saved_model.pb", "variables/variables.index"):
            assert (candidate.path / name).read_bytes() == (given / name).read_bytes()
        manifest = extra_assets.read_manifest(candidate.path)
        assert manifest["metrics"]["accuracy"] == evaluated.metrics["accuracy"]
        assert len(manifest["saved_model_sha256"]) == 64
        validated = validate.run(_nothing, pipeline.config.validation, pipeline.config.data, candidate, run)
        assert all(check.passed for check in validated.checks)
        assert validated.numbers > 0
        assert validated.summary().startswith("the SavedModel itself: ")

    def test_the_served_version_is_the_baseline(self, tmp_path: Path) -> None:
        """By its own answers, on tonight's examples."""
        pipeline = _pipeline(tmp_path / "pipeline")
        _keras(pipeline.folder / "model")
        worse = _keras(tmp_path / "served", -WEIGHTS)
        config, run = pipeline.config, run_of(pipeline, tmp_path / "runs")
        run.folder.mkdir(parents=True)
        examples = ingest.run(_nothing, config.data, run)
        taken = train.run(_nothing, config.model, config.training, config.data, examples, run)
        found = evaluate.run(_nothing, config.recipe, config.answers, examples, taken, run, (7, worse))
        assert found.baseline is not None
        assert found.baseline.version == 7
        assert found.baseline.metrics["accuracy"] < 0.05

    def test_the_highest_version_of_a_folder_is_taken(self, tmp_path: Path) -> None:
        """As other pipelines publish them; what the run takes is a copy."""
        pipeline = _pipeline(tmp_path / "pipeline")
        for number in (3, 12):
            _graph(pipeline.folder / "model" / str(number))
        run = run_of(pipeline, tmp_path / "runs")
        taken = train.run(
            _nothing, pipeline.config.model, pipeline.config.training, pipeline.config.data, None, run
        )
        assert (
            taken.summary() == f"nothing to train: {pipeline.folder / 'model' / '12'} was trained elsewhere"
        )
        assert taken.prefix.is_relative_to(run.folder)


def test_the_plan_names_what_it_is_compared_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no Estimator to predict."""
    pipeline = _pipeline(tmp_path / "pipeline", deployment={"target": "process"})
    _graph(pipeline.folder / "model")
    assert main(["plan", str(pipeline.folder), "--json"]) == 0
    said = capsys.readouterr().out
    assert "equals the SavedModel itself" in said
    assert "estimator.predict" not in said


class TestMetrics:
    """They follow from the label's dtype and the output's form."""

    def _metrics(self, expected: Any, output: Any) -> dict[str, float]:
        source = given_metrics.Source("y", None, "out")  # type: ignore[arg-type]
        return given_metrics.measure([given_metrics.Predicted(source, np.array(expected), np.array(output))])

    def test_of_a_quantity(self) -> None:
        """Squared error, absolute error."""
        found = self._metrics([[1.0], [2.0]], [1.5, 1.0])
        assert found == pytest.approx(
            {"average_loss": 0.625, "mean_absolute_error": 0.75, "root_mean_squared_error": 0.625**0.5}
        )

    def test_of_one_probability_or_logit(self) -> None:
        """The positive class's."""
        by_probability = self._metrics([0, 1, 1, 0], [[0.1], [0.9], [0.4], [0.2]])
        assert by_probability["accuracy"] == 0.75
        assert by_probability["auc"] == 1.0
        by_logit = self._metrics([0, 1], [-3.0, 3.0])
        assert by_logit["average_loss"] == pytest.approx(np.log1p(np.exp(-3)))

    def test_of_classes(self) -> None:
        """Probabilities, logits, or the classes themselves."""
        logits = np.array([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
        softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        assert self._metrics([0, 1], logits) == pytest.approx(self._metrics([0, 1], softmax))
        assert self._metrics([0, 2], logits)["accuracy"] == 0.5
        assert self._metrics([0, 1], [0, 1]) == {"accuracy": 1.0}
        assert self._metrics([b"a", b"b"], np.array([b"a", b"c"], object)) == {"accuracy": 0.5}


class TestMistakes:
    """What is told before anything is read."""

    def test_of_the_configuration(self, tmp_path: Path) -> None:
        """Nothing is trained, so nothing of it is configured."""
        for changes, said in (
            ({"training": {"max_steps": 5}}, "not trained"),
            ({"export": {"receivers": ["raw"]}}, "published as it is"),
            ({"model": {"saved_model": "model", "params": {"a": 1}}}, "taken as it is"),
            ({"model": {"saved_model": "model", "estimator": "LinearClassifier"}}, "exactly one of"),
            ({"model": {"saved_model": "model", "outputs": {"z": "a:b"}}}, "not one of data.label"),
            ({"model": {"estimator": "LinearClassifier", "outputs": {"y": "a:b"}}}, "need 'saved_model'"),
        ):
            with pytest.raises(ConfigError, match=said):
                _pipeline(tmp_path / "pipeline", **changes)

    def test_of_the_path(self, tmp_path: Path) -> None:
        """With the line of the YAML; a Keras file is no SavedModel."""
        pipeline = _pipeline(tmp_path / "pipeline")
        with pytest.raises(
            ConfigError, match=r"pipeline\.yaml:\d+:\d+: 'model.saved_model': .*no such folder"
        ):
            require_buildable(pipeline)
        kept = _pipeline(tmp_path / "pipeline", model={"saved_model": "model.keras"})
        with pytest.raises(ConfigError, match="not a SavedModel") as refused:
            require_buildable(kept)
        assert "export(FOLDER)" in refused.value.hint

    def test_of_the_signature(self, tmp_path: Path) -> None:
        """Inputs that tf.Examples do not have, outputs and metrics that it does not have."""
        pipeline = _pipeline(tmp_path / "pipeline")
        _module(pipeline.folder / "model")
        config, run = pipeline.config, run_of(pipeline, tmp_path / "runs")

        def built(changed: Pipeline) -> Any:
            one = changed.config
            return build.run(_nothing, one.model, one.training, one.evaluation, one.data, one.export, run)

        assert built(pipeline).metrics == ("accuracy", "average_loss")
        other = {"saved_model": "model", "outputs": {"y": "serving_default:nothing"}}
        with pytest.raises(ModelError, match="there is no 'serving_default:nothing'") as refused:
            built(_pipeline(pipeline.folder, model=other))
        assert "serving_default:chosen (int64[?])" in refused.value.hint
        with pytest.raises(ConfigError, match="reports no metric 'acuracy'"):
            built(_pipeline(pipeline.folder, evaluation={"thresholds": {"acuracy": {"min": 1}}}))
        _keras(tmp_path / "pipeline" / "named")
        data = {**config.data.model_dump(mode="json"), "features": {"z": "float32[2]"}}
        with pytest.raises(ModelError, match=r"takes x \(float32\[\?,2\]\), which is not one of z"):
            built(_pipeline(pipeline.folder, model={"saved_model": "named"}, data=data))


def test_a_keras_model_is_deployed_swapped_and_rolled_back(slipway: Slipway, tmp_path: Path) -> None:
    """Canary, publication, smoke test; a worse one is rejected, a better one swapped in."""
    pipeline = _pipeline(tmp_path / "pipeline", server={}, deployment={"target": "process"})
    _keras(pipeline.folder / "model")
    first = slipway.run(pipeline.folder, "deployment.canary=true")
    assert first.exit_code == 0, first.output
    assert "trained elsewhere" in first.output
    assert first.verdict["metrics"]["accuracy"] > 0.95
    assert "the SavedModel itself" in first.checks["Predict serving_default"]["rule"]
    shutil.rmtree(pipeline.folder / "model")
    _keras(pipeline.folder / "model", -WEIGHTS)
    worse = slipway.run(pipeline.folder)
    assert worse.verdict["outcome"] == "rejected", worse.output
    assert worse.verdict["metrics"]["accuracy"] < 0.05, "it is on the report"
    shutil.rmtree(pipeline.folder / "model")
    _keras(pipeline.folder / "model", 2 * WEIGHTS)
    second = slipway.run(pipeline.folder)
    assert second.exit_code == 0, second.output
    assert second.verdict["previous_version"] == first.verdict["version"]
    assert second.verdict["baseline"]["note"] == "evaluated on the same examples, by its own answers"
    examples = slipway.home / "runs" / "given" / first.verdict["run_id"] / "examples"
    assert {file.suffix for file in examples.iterdir()} == {".gz", ".json"}, "it is kept, and compressed"
    back = slipway("rollback", pipeline.folder)
    assert back.exit_code == 0, back.output
    shown = slipway("status", pipeline.folder, "--json")
    assert json.loads(shown.output)[0]["version"] == first.verdict["version"]
