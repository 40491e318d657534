"""Serving input receivers: every kind of feature, functions of a user's own, the same preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from pipelines import run_of, written

from configs.loading.pipelines import ConfigError
from configs.schema.features import FeatureSpec, stored_in_examples
from configs.schema.pipeline import AnswersConfig
from tasks.answers import offline_answers
from tasks.core.artifacts import Candidate, Checkpoint, Examples, Validation
from tasks.core.errors import DataError, ModelError
from tasks.examples.tf_examples import parsing_spec, serialize, write_records
from tasks.in_tensorflow import export, ingest, train, validate
from tasks.processes.tensorflow_process import ignore_progress

FEATURES: dict[str, Any] = {
    "size": {"dtype": "float32", "shape": [2]},
    "series": {"dtype": "float32", "kind": "fixed_len_sequence"},
    "tags": "int64[]",
    "basket": {
        "dtype": "float32", "kind": "sparse", "shape": [10], "index_key": "ids", "value_key": "prices",
    },
    "visits": {"dtype": "int64", "kind": "ragged"},
}  # fmt: skip
MODEL = """
import tensorflow as tf

def build_estimator(params, config):
    return tf.estimator.Estimator(model_fn, config=config)

def model_fn(features, labels, mode):
    visits = features["visits"]
    seen = {
        "size": tf.reduce_sum(features["size"], 1),
        "series": tf.reduce_sum(features["series"], 1),
        "tags": tf.cast(tf.sparse.reduce_sum(features["tags"], 1), tf.float32),
        "basket": tf.sparse.to_dense(features["basket"])[:, 3],
        "visits": tf.cast(tf.reduce_sum(visits, 1), tf.float32),
        "rows": tf.cast(visits.row_lengths(), tf.float32),
    }
    if "total" in features:
        seen["total"] = features["total"]
    weight = tf.compat.v1.get_variable("weight", [])
    answer = {"answer": weight * seen["size"], **seen}
    if mode == "infer":
        output = {"serving_default": tf.estimator.export.PredictOutput(answer)}
        return tf.estimator.EstimatorSpec(mode, predictions=answer, export_outputs=output)
    loss = tf.reduce_mean(tf.square(answer["answer"] - labels))
    step = tf.compat.v1.train.GradientDescentOptimizer(0.001).minimize(
        loss, tf.compat.v1.train.get_global_step())
    return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=step)

def receiver_of_no_argument():
    sizes = tf.compat.v1.placeholder(tf.float32, [None, 2])
    one = tf.fill([tf.shape(sizes)[0], 1], 1)
    return tf.estimator.export.ServingInputReceiver({
        "size": sizes, "series": tf.cast(one, tf.float32), "tags": tf.sparse.from_dense(one),
        "basket": tf.sparse.from_dense(tf.tile(tf.cast(one, tf.float32), [1, 10])),
        "visits": tf.RaggedTensor.from_tensor(one),
    }, {"size": sizes})

def receiver_of_spec(spec):
    serialized = tf.compat.v1.placeholder(tf.string, [None])
    parsed = tf.io.parse_example(serialized, spec)
    return tf.estimator.export.ServingInputReceiver(parsed, {"mine": serialized})

def receiver_of_other_names():
    receiver = receiver_of_no_argument()
    return receiver._replace(receiver_tensors={"sizes": receiver.receiver_tensors["size"]})

def no_receiver():
    return {}

def preprocess(features):
    features["total"] = tf.reduce_sum(features["size"], 1) * 10.0
    return features

def preprocess_badly(features):
    features["total"] = 1
"""


def records(count: int = 120) -> list[bytes]:
    """Examples of every kind; the i-th has i % 3 tags, prices and visits."""
    specs = stored_in_examples({name: FeatureSpec.model_validate(each) for name, each in FEATURES.items()})
    made = []
    for i in range(count):
        some = range(i % 3)
        values: dict[str, Any] = {
            "size": [i, 1.0], "series": [float(each) for each in some], "tags": [each + i for each in some],
            "ids": [3 + each for each in some], "prices": [float(i + each) for each in some],
            "visits": [each + 1 for each in some], "y": [float(i)],
        }  # fmt: skip
        made.append(serialize(values, {**specs, "y": FeatureSpec(dtype="float32")}))
    return made


def exported(folder: Path, **config: Any) -> tuple[Candidate, Validation]:
    """Ingest, train for two steps, export and validate a model that answers with what it sees."""
    folder.mkdir(exist_ok=True)
    write_records(folder / "all.tfrecord", records())
    (folder / "model.py").write_text(MODEL)
    data = {
        "files": ["*.tfrecord"], "features": FEATURES, "label": {"y": "float32"}, "split": {"sample": 0.2},
    }  # fmt: skip
    model = {"factory": "model.py:build_estimator", **config.pop("model", {})}
    pipeline = written(folder, {"data": data, "model": model, **config})
    this, run = pipeline.config, run_of(pipeline, folder)
    examples: Examples = ingest.run(ignore_progress, this.data, run)
    checkpoint: Checkpoint = train.run(ignore_progress, this.model, this.training, this.data, examples, run)
    candidate = export.run(
        ignore_progress,
        this.model,
        this.training,
        this.export,
        this.data,
        examples,
        checkpoint,
        AnswersConfig(samples=20),
        run,
    )
    return candidate, validate.run(ignore_progress, this.validation, this.data, candidate)


def test_every_kind_of_feature_parses_alike_at_training_and_serving(tmp_path: Path) -> None:
    """Sparse and ragged too; the served graph sees what the examples hold, in batches of any size."""
    candidate, proof = exported(
        tmp_path, model={"preprocess": "model.py:preprocess"}, export={"row_independent": True}
    )
    said = offline_answers.read(candidate.offline, "predicted", "serving_default")[candidate.samples]
    some = said["rows"]
    first = said["size"] - 1
    assert set(some) == {0, 1, 2}
    assert said["basket"].tolist() == [i if n else 0 for i, n in zip(first, some, strict=True)]
    assert said["visits"].tolist() == [n * (n + 1) / 2 for n in some]
    assert said["total"].tolist() == (said["size"] * 10).tolist(), "the receiver preprocesses, too"
    assert proof.numbers == 4 * said["size"].size * len(said)


def test_a_function_of_the_user_may_take_the_spec(tmp_path: Path) -> None:
    """Whatever its alias, one string an example is a tf.Example; and its features are preprocessed, too."""
    config = {"receivers": ["model.py:receiver_of_spec"]}
    candidate, proof = exported(tmp_path, export=config, model={"preprocess": "model.py:preprocess"})
    (signature,) = candidate.signatures
    assert (signature.inputs, signature.receiver) == ({"mine": "string[?]"}, "parsing")
    assert "total" in signature.outputs
    assert proof.numbers > 0


def test_a_function_of_the_user_must_answer_as_training_does(tmp_path: Path) -> None:
    """One that takes fewer features fills in the others: where that changes answers, it is rejected."""
    from tasks.core.errors import Rejected

    with pytest.raises(Rejected, match=r"output '\w+', sample example"):
        exported(tmp_path, export={"receivers": ["model.py:receiver_of_no_argument"]})


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no_receiver", "expected a ServingInputReceiver, found dict"),
        ("receiver_of_other_names", r"takes sizes \(float32\[\?,2\]\), which is not one of size \(float32\)"),
        ("receiver_of_nothing", "has no 'receiver_of_nothing'"),
    ],
)
def test_functions_that_cannot_be_used(tmp_path: Path, function: str, message: str) -> None:
    """It says which and why, and no candidate is left."""
    with pytest.raises(ModelError, match=message):
        exported(tmp_path, export={"receivers": [f"model.py:{function}"]})
    assert list((tmp_path / "models").glob("*")) == []


def test_preprocessing_that_returns_nothing(tmp_path: Path) -> None:
    """The error is about the function, before a step was made."""
    with pytest.raises(ModelError, match="expected it to return a dict of tensors, found NoneType"):
        exported(tmp_path, model={"preprocess": "model.py:preprocess_badly"})


HALVED = """
import tensorflow as tf

def half(features):
    return {"h": features["x"] / 2.0}

def receiver(spec):
    serialized = tf.compat.v1.placeholder(tf.string, [None])
    parsed = tf.io.parse_example(serialized, spec)
    tensors = {"tensors": dict(parsed)}
    return tf.estimator.export.ServingInputReceiver(parsed, {"mine": serialized}, tensors)
"""


@pytest.mark.parametrize(
    ("receivers", "prefix"), [(["parsing", "raw"], "raw"), (["model.py:receiver"], "tensors")]
)
def test_canned_estimators_see_preprocessed_features(
    tmp_path: Path, receivers: list[str], prefix: str
) -> None:
    """Feature columns may name what only preprocessing makes; so are raw tensors, of alternatives too."""
    spec = {"x": FeatureSpec(dtype="float32", shape=(2,)), "y": FeatureSpec(dtype="int64")}
    some = [serialize({"x": [float(i), 1.0], "y": [i % 2]}, spec) for i in range(80)]
    tmp_path.joinpath("model.py").write_text(HALVED)
    write_records(tmp_path / "all.tfrecord", some)
    model = {
        "estimator": "LinearClassifier", "preprocess": "model.py:half",
        "feature_columns": [{"kind": "numeric", "key": "h"}],
    }  # fmt: skip
    pipeline = written(tmp_path, {"model": model, "export": {"receivers": receivers}})
    this, run = pipeline.config, run_of(pipeline, tmp_path)
    examples = ingest.run(ignore_progress, this.data, run)
    checkpoint = train.run(ignore_progress, this.model, this.training, this.data, examples, run)
    candidate = export.run(
        ignore_progress,
        this.model,
        this.training,
        this.export,
        this.data,
        examples,
        checkpoint,
        AnswersConfig(samples=9),
        run,
    )
    raw = next(each for each in candidate.signatures if each.name == f"{prefix}:predict")
    assert raw.receiver == "raw"
    assert raw.inputs == {"x": "float32[?,2]"}, "clients send what was there before preprocessing"
    assert validate.run(ignore_progress, this.validation, this.data, candidate).numbers > 0


def test_two_dimensional_sparse_features() -> None:
    """One index feature for each dimension."""
    spec = FeatureSpec.model_validate(
        {"dtype": "float32", "kind": "sparse", "shape": [3, 4], "index_key": ["row", "col"], "value_key": "v"}
    )
    record = serialize({"row": [2], "col": [1], "v": [5.0]}, stored_in_examples({"cells": spec}))
    found = tf.io.parse_example([record], parsing_spec({"cells": spec}))["cells"]
    assert np.argwhere(tf.sparse.to_dense(found).numpy()).tolist() == [[0, 2, 1]]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"dtype": "float32", "kind": "sparse", "shape": [3]}, "a sparse feature needs value_key"),
        ({"dtype": "float32", "kind": "ragged", "shape": [3]}, "a ragged feature has no shape"),
        ({"dtype": "float32", "index_key": "i"}, "index_key is of sparse features"),
        ({"dtype": "float32", "kind": "ragged", "default": 1.0}, "a ragged feature has no default"),
    ],
)
def test_specs_that_contradict_themselves(tmp_path: Path, spec: dict[str, Any], message: str) -> None:
    """They are errors of the configuration."""
    data = {"files": ["*"], "features": {"x": spec}, "label": {"y": "int64"}}
    with pytest.raises(ConfigError, match=message):
        written(tmp_path, {"data": data})


def test_an_example_with_more_values_than_indices(tmp_path: Path) -> None:
    """The one example that does not parse is named."""
    specs = stored_in_examples({"basket": FeatureSpec.model_validate(FEATURES["basket"])})
    specs["y"] = FeatureSpec(dtype="int64")
    good = [serialize({"ids": [1], "prices": [1.0], "y": [i % 2]}, specs) for i in range(5)]
    bad = serialize({"ids": [1], "prices": [1.0, 2.0], "y": [1]}, specs)
    write_records(tmp_path / "all.tfrecord", [*good, bad, *good])
    data = {"files": ["*.tfrecord"], "features": {"basket": FEATURES["basket"]}, "label": {"y": "int64"}}
    pipeline = written(tmp_path, {"data": data})
    with pytest.raises(
        DataError, match=r"all.tfrecord: record 6: feature 'basket': .*found \[1\] for 2 float32"
    ):
        ingest.run(ignore_progress, pipeline.config.data, run_of(pipeline, tmp_path))
