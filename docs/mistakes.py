"""The page docs/reference/mistakes.md: mistakes in a pipeline.yaml, and the message that each gets."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from configs.loading.errors import ConfigError
from configs.loading.model_checks import require_buildable
from configs.loading.pipelines import load_pipeline
from configs.loading.references import require_callables

REMOVED = object()
"""In place of a value: the key is not there."""

BASE: dict[str, Any] = {
    "name": "houses",
    "data": {
        "files": ["*.tfrecord"],
        "features": {
            "area": "float32", "rooms": "int64", "city": "string", "tags": "string[]",
            "visits": {"dtype": "int64", "kind": "ragged"},
        },
        "label": {"sold": "int64"},
    },
    "model": {"estimator": "LinearClassifier"},
}  # fmt: skip
"""A pipeline without a mistake."""

MODULE = "import tensorflow as tf\n\ndef build_estimator(params, config):\n    return None\n"
"""Text of model.py beside it."""


def _columns(*columns: Any) -> dict[str, Any]:
    return {"model.feature_columns": list(columns)}


def _dnn(**params: Any) -> dict[str, Any]:
    return {"model": {"estimator": "DNNClassifier", "params": {"hidden_units": [8], **params}}}


def _head(head: Any) -> dict[str, Any]:
    return {"model": {"estimator": "LinearEstimator", "params": {"head": head}}}


MISTAKES: dict[str, Mapping[str, Any]] = {
    "a key is misspelt": {"trainig": {"max_steps": 10}},
    "a key is misspelt, further down": {"training.max_step": 10},
    "a required key is missing": {"model": REMOVED},
    "a name with capital letters": {"name": "Houses"},
    "a number is text": {"training.max_steps": "many"},
    "a number is out of range": {"training.batch_size": 0},
    "a value that is not one of the words": {"deployment.target": "dokcer"},
    "no source of examples": {"data.files": REMOVED},
    "two sources of examples": {"data.ingest": "ingest.py:write"},
    "a dtype that TensorFlow does not parse": {"data.features.area": "float64"},
    "a shape that is none": {"data.features.area": "float32[x]"},
    "the label is also a feature": {"data.features.sold": "int64"},
    "a split by a feature that is not there": {"data.split": {"by": "user_id"}},
    "eval and sample take everything": {"data.split": {"eval": 0.7, "sample": 0.3}},
    "a CSV option for TFRecords": {"data.delimiter": ";"},
    "CSV files, and no word of it": {"data.files": ["*.csv"]},
    "Parquet files, and no word of it": {"data.files": ["nights/*.parquet"]},
    "an encoding that Python does not know": {"data.format": "csv", "data.encoding": "utf8-sig-2"},
    "a password in an address": {"data.files": ["s3://user:secret@bucket/x"]},
    "a gate on a feature that is not there": {"data.gates": {"limits": {"aera": {"min": 0}}}},
    "a threshold without a limit": {"evaluation.thresholds": {"accuracy": {}}},
    "a change without a limit": {"evaluation.changes": {"accuracy": {}}},
    "slices by a float": {"evaluation.slices": ["area"]},
    "slices by a feature that is not there": {"evaluation.slices": ["town"]},
    "no model": {"model": {}},
    "two models": {"model.factory": "model.py:build_estimator"},
    "an Estimator is misspelt": {"model.estimator": "LinearClasifier"},
    "an Estimator that left TensorFlow": {"model.estimator": "BoostedTreesClassifier"},
    "a required argument is missing": {"model.estimator": "DNNClassifier"},
    "an argument is misspelt": _dnn(hiden_units=[4]),
    "an argument that Slipway sets": _dnn(model_dir="/tmp/x"),  # noqa: S108 (nothing is written there)
    "an optimizer is misspelt": _dnn(optimizer="Adem"),
    "an optimizer's argument is misspelt": _dnn(optimizer={"name": "Adam", "learningrate": 0.1}),
    "1e-3, which YAML reads as text": _dnn(optimizer={"name": "Adam", "learning_rate": "1e-3"}),
    "weights by a feature that is not there": _dnn(weight_column="weight"),
    "a head is misspelt": _head("MulticlassHead_"),
    "a head without its number of classes": _head("MultiClassHead"),
    "a canned Estimator without a label": {"data.label": REMOVED},
    "a column of a feature that is not there": _columns({"kind": "numeric", "key": "aera"}),
    "a column of another dtype": _columns({"kind": "numeric", "key": "city"}),
    "a column of a kind that is none": _columns({"kind": "numerical", "key": "area"}),
    "a column of a ragged feature": _columns({"kind": "hash_bucket", "key": "visits", "buckets": 9}),
    "a vocabulary file that is not there": _columns(
        {"kind": "vocabulary", "key": "city", "file": "cities.txt"}
    ),
    "a crossed column of a feature that is not there": _columns(
        {"kind": "crossed", "keys": ["city", "room"], "buckets": 9}
    ),
    "columns for a factory": {
        "model": {
            "factory": "model.py:build_estimator",
            "feature_columns": [{"kind": "numeric", "key": "area"}],
        }
    },
    "a list of columns for a combined Estimator": {
        "model": {
            "estimator": "DNNLinearCombinedClassifier", "params": {"dnn_hidden_units": [4]},
            "feature_columns": [{"kind": "numeric", "key": "area"}],
        }
    },
    "a Python file that is not there": {"model": {"factory": "modle.py:build_estimator"}},
    "a function that is not there": {"model": {"factory": "model.py:build"}},
    "a SavedModel that is not there": {"model": {"saved_model": "exports/houses"}},
    "a Keras file in place of a SavedModel": {"model": {"saved_model": "houses.keras"}},
    "training of a SavedModel": {"model": {"saved_model": "."}, "training.max_steps": 10},
    "raw tensors of a ragged feature": {"export.receivers": ["raw"]},
    "the best checkpoint, by no metric": {"export.checkpoint": "best"},
    "MetaGraphs of an Estimator": {"export.meta_graphs": [["serve"], ["serve", "gpu"]]},
    "the same port twice": {"deployment.grpc_port": 8500, "deployment.rest_port": 8500},
    "an external server without an address": {"deployment.target": "external"},
    "an image for a process": {"server.image": "tensorflow/serving:2.15.1", "deployment.target": "process"},
    "an address that others reach, of a process": {"server.address": "0.0.0.0"},  # noqa: S104
    "one version only": {"export.keep_versions": 1},
}  # fmt: skip

_HEAD = """\
# Mistakes, and what `slipway check` says

Generated by `make docs` from `docs/mistakes.py`; do not edit. Every message is what `slipway check` prints.
All of these are found in a second, without TensorFlow, data or network, and so before a run has begun.
`slipway check --build` and `preflight` find what only TensorFlow knows: a model_fn that fails, a metric that
the model does not report, signatures that cannot be served.
"""


def page() -> Iterator[str]:
    """Yield the lines of the page."""
    yield _HEAD
    yield "| mistake | message |\n|---|---|"
    for mistake, changes in MISTAKES.items():
        error = refusal(changes)
        hint = f" *{_cell(error.hint)}*" if error.hint else ""
        yield f"| {mistake} | {_cell(error.message)}{hint} |"


def refusal(changes: Mapping[str, Any]) -> ConfigError:
    """Return the error that `slipway check` ends with; paths are those of a folder `houses`."""
    with tempfile.TemporaryDirectory(prefix="slipway-mistakes-") as name:
        folder = Path(name).resolve() / "houses"
        write(folder, changes)
        try:
            loaded = load_pipeline(folder)
            require_callables(loaded)
            require_buildable(loaded)
        except ConfigError as error:
            here = f"{folder.parent}/"
            return ConfigError(error.message.replace(here, ""), error.hint.replace(here, ""))
    raise AssertionError(f"slipway check finds nothing wrong with {changes}")


def write(folder: Path, changes: Mapping[str, Any]) -> None:
    """Write a pipeline with these values in place of those of `BASE`."""
    folder.mkdir()
    values = copy.deepcopy(BASE)
    for path, value in changes.items():
        *parents, last = path.split(".")
        target = values
        for key in parents:
            target = target.setdefault(key, {})
        if value is REMOVED:
            del target[last]
        else:
            target[last] = value
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    (folder / "model.py").write_text(MODULE)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "\\<").replace("*", "\\*")
