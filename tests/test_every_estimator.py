"""Every canned Estimator, head, optimizer and kind of feature column through the flow `retrain`, by YAML."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from slipway_command import REPOSITORY, user_environment

from configs.schema.features import FeatureColumn, FeatureSpec
from tasks.examples.tf_examples import serialize, write_records

FEATURES = {
    "age": "float32",
    "pair": "float32[2]",
    "rooms": "int64",
    "city": "string",
    "street": "string",
    "tags": "string[]",
}
AGE = {"kind": "bucketized", "key": "age", "boundaries": [3, 6]}
CATEGORICAL = [
    {"kind": "vocabulary", "key": "city", "values": ["Rome", "Oslo"], "num_oov_buckets": 1},
    {"kind": "vocabulary", "key": "tags", "file": "tags.txt"},
    {"kind": "hash_bucket", "key": "street", "buckets": 5},
    {"kind": "identity", "key": "rooms", "buckets": 8},
    {"kind": "crossed", "keys": ["city", AGE, {"kind": "identity", "key": "rooms", "buckets": 8}],
     "buckets": 9},
]  # fmt: skip
NUMERIC = [
    {"kind": "numeric", "key": "age", "mean": 5.0, "std": 2.0},
    {"kind": "numeric", "key": "pair"},
    AGE,
]
LINEAR = [*NUMERIC, *CATEGORICAL]
DENSE = [
    *NUMERIC,
    *({"kind": "indicator", "of": column} for column in CATEGORICAL[:3]),
    *({"kind": "embedding", "of": column, "dimension": 2} for column in CATEGORICAL[2:]),
]
COLUMNS = {"DNN": DENSE, "Linear": LINEAR, "DNNLinearCombined": {"linear": LINEAR, "dnn": DENSE}}
FEW_LINEAR = [NUMERIC[0], CATEGORICAL[-1]]
FEW_DENSE = [NUMERIC[0], DENSE[-1]]
FEW_COLUMNS = {
    "DNN": FEW_DENSE,
    "Linear": FEW_LINEAR,
    "DNNLinearCombined": {"linear": FEW_LINEAR, "dnn": FEW_DENSE},
}
"""A numeric and a crossed column: a graph of every kind takes seconds to build; classifiers have it."""
LABELS = {
    "class": {"y": "int64"},
    "number": {"y": "float32"},
    "many": {"y": "int64[3]"},
    "both": {"y": "int64", "z": "float32"},
}
HEADS = {
    "BinaryClassHead": ("class", {}),
    "LogisticRegressionHead": ("number", {}),
    "MultiClassHead": ("class", {"n_classes": 3}),
    "MultiHead": ("both", {"heads": {"y": {"name": "BinaryClassHead"}, "z": {"name": "RegressionHead"}}}),
    "MultiLabelHead": ("many", {"n_classes": 3}),
    "PoissonRegressionHead": ("number", {}),
    "RegressionHead": ("number", {"label_dimension": 1}),
}
MODELS = (
    # Estimator, head, optimizer (of DNNLinearCombined*: the deep part's)
    ("DNNClassifier", None, "Adadelta"), ("DNNRegressor", None, "Adagrad"),
    ("LinearClassifier", None, "Adam"), ("LinearRegressor", None, "Adamax"),
    ("DNNLinearCombinedClassifier", None, "Nadam"), ("DNNLinearCombinedRegressor", None, "RMSprop"),
    ("BaselineClassifier", None, "SGD"), ("BaselineRegressor", None, "Ftrl"),
    ("DNNEstimator", "MultiHead", {"name": "Adam", "learning_rate": 0.01, "clipnorm": 1.0}),
    ("DNNEstimator", "MultiLabelHead", "Adam"), ("LinearEstimator", "LogisticRegressionHead", "Ftrl"),
    ("LinearEstimator", "PoissonRegressionHead", "SGD"),
    ("DNNLinearCombinedEstimator", "MultiClassHead", "Adagrad"),
    ("BaselineEstimator", "BinaryClassHead", "Ftrl"), ("BaselineEstimator", "RegressionHead", "Ftrl"),
)  # fmt: skip


def _named(estimator: str, head: str | None) -> str:
    return f"{estimator}-{head}".lower() if head else estimator.lower()


def _pipeline(folder: Path, estimator: str, head: str | None, optimizer: Any) -> Path:
    """Write the pipeline, and 120 examples whose labels follow from their rooms."""
    family = estimator.removesuffix("Classifier").removesuffix("Regressor").removesuffix("Estimator")
    kind, arguments = HEADS[head] if head else ("class" if estimator.endswith("Classifier") else "number", {})
    label = LABELS[kind]
    deep = family == "DNNLinearCombined"
    params: dict[str, Any] = {"dnn_optimizer" if deep else "optimizer": optimizer}
    if family.startswith("DNN"):
        params["dnn_hidden_units" if deep else "hidden_units"] = [4]
    if head:
        params["head"] = {"name": head, **arguments}
    model = {"estimator": estimator, "params": params}
    if family in COLUMNS:
        chosen = COLUMNS if estimator.endswith("Classifier") else FEW_COLUMNS
        model["feature_columns"] = chosen[family]
    folder = folder / _named(estimator, head)
    folder.mkdir()
    (folder / "tags.txt").write_text("red\ntall\n")
    specs = {name: FeatureSpec.model_validate(spec) for name, spec in {**FEATURES, **label}.items()}
    write_records(
        folder / "some.tfrecord", [serialize(_values(number, kind), specs) for number in range(120)]
    )
    config = {
        "name": folder.name,
        "data": {"files": ["*.tfrecord"], "features": FEATURES, "label": label, "split": {"sample": 0.2}},
        "model": model,
        "training": {"max_steps": 3, "batch_size": 16},
        "answers": {"tolerance": {"rtol": 1e-4}},
    }
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def _values(number: int, kind: str) -> dict[str, Any]:
    rooms = number % 8
    labels = {"many": [rooms > 3, rooms > 5, rooms < 2], "number": [float(rooms > 3)], "class": [rooms > 3]}
    return {
        "age": [number % 10 + 0.5], "pair": [1.0, number / 120], "rooms": [rooms],
        "city": [(b"Rome", b"Oslo", b"Bonn")[number % 3]], "tags": [b"red", b"old"][: number % 3],
        "street": [b"High Street %d" % (number % 9)],
        "y": labels.get(kind, labels["class"]), **({"z": [float(rooms)]} if kind == "both" else {}),
    }  # fmt: skip


def _selected(request: pytest.FixtureRequest) -> list[tuple[str, str | None, Any]]:
    """Return the models whose tests run in this session."""
    here = [item for item in request.session.items if item.path == request.node.path]
    params = [
        item.callspec.params
        for item in here
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
    ]
    selected = [(each["estimator"], each["head"], each["optimizer"]) for each in params]
    return [model for model in MODELS if model in selected]


@pytest.fixture(scope="module")
def verdicts(
    request: pytest.FixtureRequest, prefect_api: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Return what became of each pipeline, all trained in one process."""
    folder = tmp_path_factory.mktemp("models")
    pipelines = [_pipeline(folder, *model) for model in _selected(request)]
    program = Path(__file__).with_name("flows_in_one_process.py")
    environment = {**user_environment(folder / "home"), "PREFECT_API_URL": prefect_api}
    done = subprocess.run(
        [sys.executable, str(program), *map(str, pipelines)], cwd=REPOSITORY, capture_output=True, text=True,
        timeout=600, env={**environment, "PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(("estimator", "head", "optimizer"), MODELS)
def test_it_trains_exports_and_validates(
    verdicts: dict[str, Any], estimator: str, head: str | None, optimizer: Any
) -> None:
    """With feature columns (classifiers: of every kind), crossed ones among them, through the engine."""
    verdict = verdicts[_named(estimator, head)]
    assert verdict["error"] is None
    assert verdict["outcome"] == "trained"
    assert [stage["name"] for stage in verdict["stages"]] == [
        "ingest", "check-data", "train", "evaluate", "export", "validate",
    ]  # fmt: skip
    assert verdict["checks"] and all(check["passed"] for check in verdict["checks"])


def test_nothing_that_a_yaml_may_name_is_left_out() -> None:
    """Each canned Estimator, head, optimizer and kind of column is in one of the models above."""
    import tensorflow as tf

    from tasks.estimators import canned_estimators

    assert {estimator for estimator, _, _ in MODELS} == set(canned_estimators.CANNED)
    assert {head for _, head, _ in MODELS if head} == set(canned_estimators._HEADS)
    known = {name for name, cls in vars(tf.keras.optimizers.legacy).items() if isinstance(cls, type)}
    assert {each if isinstance(each, str) else each["name"] for _, _, each in MODELS} == known - {"Optimizer"}
    kinds = {
        get_args(each.model_fields["kind"].annotation)[0] for each in get_args(get_args(FeatureColumn)[0])
    }
    assert {column["kind"] for column in (*LINEAR, *DENSE)} == kinds
