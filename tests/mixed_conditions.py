"""Program for test_machines.py: one step of a pipeline, under the conditions that its environment sets.

    python mixed_conditions.py STEP FOLDER PIPELINE,… ARGUMENT…

Steps: `train`, `export NAME`, `validate NAME EXPORTED…`, `ask NAME ADDRESSES CLIENTS EXPORTED…`.
Prints rows as JSON.
"""

from __future__ import annotations

import json
import pickle
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PIPELINES = ("digits", "diabetes", "two_heads", "raw_tensors", "wide", "dtypes")
WIDE = {
    "name": "wide",
    "data": {
        "files": ["*.tfrecord"], "features": {"city": "string", "day": "string", "x": "float32[2]"},
        "label": {"y": "int64"}, "split": {"sample": 0.2},
    },
    "model": {
        "estimator": "DNNLinearCombinedClassifier",
        "params": {"dnn_hidden_units": [32, 16], "n_classes": 3},
        "feature_columns": {
            "linear": [
                {"kind": "vocabulary", "key": "city", "values": ["Rome", "Oslo", "Lima"]},
                {"kind": "crossed", "keys": ["city", "day"], "buckets": 20},
            ],
            "dnn": [
                {"kind": "numeric", "key": "x"},
                {"kind": "embedding", "dimension": 8,
                 "of": {"kind": "vocabulary", "key": "city", "values": ["Rome", "Oslo", "Lima"]}},
            ],
        },
    },
    "training": {"max_steps": 100, "batch_size": 32},
}  # fmt: skip
DTYPES = {
    "name": "dtypes",
    "data": {
        "files": ["*.tfrecord"], "features": {"city": "string", "x": "float32[2]"}, "label": {"y": "int64"},
        "split": {"sample": 0.2},
    },
    "model": {"factory": "model.py:build", "params": {}},
    "training": {"max_steps": 50, "batch_size": 32},
}  # fmt: skip
MODEL = """
import tensorflow as tf


def build(params, config, context=None, **_):
    def model_fn(features, labels, mode):
        hidden = tf.compat.v1.layers.dense(features["x"], 64, tf.nn.tanh)
        y = tf.compat.v1.layers.dense(hidden, 3)
        outputs = {
            "double": tf.cast(y, tf.float64) / 3, "half": tf.cast(y, tf.float16),
            "brain": tf.cast(y, tf.bfloat16), "best": tf.argmax(y, 1), "city": features["city"],
        }
        export = {"serving_default": tf.estimator.export.PredictOutput(outputs)}
        if mode == tf.estimator.ModeKeys.PREDICT:
            return tf.estimator.EstimatorSpec(mode, predictions=outputs, export_outputs=export)
        loss = tf.compat.v1.losses.sparse_softmax_cross_entropy(labels, y)
        step = tf.compat.v1.train.get_or_create_global_step()
        train = tf.compat.v1.train.AdamOptimizer(0.01).minimize(loss, step)
        return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=train)

    return tf.estimator.Estimator(model_fn, config=config)
"""


def _pipeline(folder: Path, name: str) -> Any:
    from configs.loading.pipelines import load_pipeline

    own = folder / f"{name}-yaml"
    source = own if own.is_dir() else CONFIGS / name
    return load_pipeline(source, {"training.max_steps": 100})


def _written(folder: Path) -> None:
    """Write the two pipelines that are not among the examples."""
    import yaml

    from configs.schema.features import FeatureSpec
    from tasks.examples.tf_examples import serialize, write_records

    random = np.random.default_rng(1)
    specs = {
        "city": FeatureSpec(dtype="string"), "day": FeatureSpec(dtype="string"),
        "x": FeatureSpec(dtype="float32", shape=(2,)), "y": FeatureSpec(dtype="int64"),
    }  # fmt: skip
    records = []
    for index in range(600):
        x = random.normal(0, 2, 2)
        city = [b"Rome", b"Oslo", b"Lima", b"Bonn"][index % 4]
        day = [b"Monday", b"Friday"][index % 3 == 0]
        example = {"city": [city], "day": [day], "x": list(x), "y": [int(x.sum() > 0) + index % 2]}
        records.append(serialize(example, specs))
    for config in (WIDE, DTYPES):
        own = folder / f"{config['name']}-yaml"
        own.mkdir()
        write_records(own / "all.tfrecord", records)
        (own / "pipeline.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        (own / "model.py").write_text(MODEL)


def _train(folder: Path, names: Sequence[str]) -> None:
    from pipelines import run_of

    from tasks.in_tensorflow import ingest, train
    from tasks.processes.tensorflow_process import ignore_progress

    _written(folder)
    for name in names:
        pipeline = _pipeline(folder, name)
        config, run = pipeline.config, run_of(pipeline, folder / name)
        examples = ingest.run(ignore_progress, config.data, run)
        checkpoint = train.run(ignore_progress, config.model, config.training, config.data, examples, run)
        (folder / f"{name}.trained").write_bytes(pickle.dumps((run, examples, checkpoint)))


def model(name: str, exported: str) -> str:
    """Return the name that a pipeline's export is served by."""
    return f"{name}-{exported.replace(', ', '-').replace(' ', '_')}"


def _export(folder: Path, names: Sequence[str], under: str) -> None:
    from tasks.in_tensorflow import export
    from tasks.processes.tensorflow_process import ignore_progress

    for name in names:
        config = _pipeline(folder, name).config
        run, examples, checkpoint = pickle.loads((folder / f"{name}.trained").read_bytes())
        base = folder / model(name, under)
        mine = replace(run, folder=folder / f"run-{base.name}", model_base_path=base)
        mine.folder.mkdir()
        mine.model_dir.symlink_to(run.model_dir)
        candidate = export.run(
            ignore_progress, config.model, config.training, config.export, config.data, examples, checkpoint,
            config.answers, mine,
        )  # fmt: skip
        candidate.path.rename(base / "1")
        (folder / f"{base.name}.candidate").write_bytes(pickle.dumps(replace(candidate, path=base / "1")))


def _candidates(
    folder: Path, names: Sequence[str], exported: Sequence[str]
) -> Iterator[tuple[str, str, Any]]:
    for name in names:
        for each in exported:
            yield name, each, pickle.loads((folder / f"{model(name, each)}.candidate").read_bytes())


def _row(stage: str, name: str, exported: str, under: str, checks: Sequence[Any]) -> dict[str, Any]:
    wrong = [f"{check.name}: {check.observed}" for check in checks if not check.passed]
    apart = [re.search(r"within ([0-9.e+-]+) of scale", str(check.observed)) for check in checks]
    return {
        "stage": stage, "pipeline": name, "exported": exported, "under": under,
        "bits": all(check.limit == "same bits" for check in checks), "problem": "; ".join(wrong),
        "largest": max((float(each[1]) for each in apart if each), default=0.0),
    }  # fmt: skip


def _validate(
    folder: Path, names: Sequence[str], under: str, exported: Sequence[str]
) -> Iterator[dict[str, Any]]:
    from configs.schema.pipeline import ValidationConfig
    from tasks.core.errors import Rejected
    from tasks.in_tensorflow import validate
    from tasks.processes.tensorflow_process import ignore_progress

    for name, each, candidate in _candidates(folder, names, exported):
        data = _pipeline(folder, name).config.data
        try:
            checks = validate.run(ignore_progress, ValidationConfig(), data, candidate).checks
        except Rejected as error:
            checks = error.checks
        yield _row("validate", name, each, under, checks)


def _ask(
    folder: Path,
    names: Sequence[str],
    under: str,
    grpc: str,
    rest: str,
    clients: int,
    exported: Sequence[str],
) -> Iterator[dict[str, Any]]:
    from tasks.answers import offline_answers, served
    from tasks.answers.served import ServerConditions
    from tasks.core.artifacts import Endpoint
    from tasks.examples.tf_examples import read_records
    from tasks.servers.serving_client import ServingClient

    for name, each, candidate in _candidates(folder, names, exported):
        data, served_as = _pipeline(folder, name).config.data, model(name, each)
        records = read_records([offline_answers.examples_file(candidate.offline)])
        endpoint = Endpoint(served_as, 1, grpc, rest, "process", "", started=True)
        with ServingClient(grpc, served_as, 60) as client:
            for stage, busy in (("served", 0), *((("served under load", clients),) if clients else ())):
                server = ServerConditions.of(endpoint, unknown_to_clients=not busy)
                with _busy(busy, grpc, served_as, candidate, records, data):
                    found = list(served.compared(client, candidate, records, data, server))
                yield _row(stage, name, each, under, [check for one in found for check in one.checks])


@contextmanager
def _busy(
    clients: int, grpc: str, served_as: str, candidate: Any, records: Sequence[bytes], data: Any
) -> Iterator[None]:
    """Keep the model busy with batches of all sizes, so that the server merges what waits."""
    from tasks.answers import served
    from tasks.servers.serving_client import ServingClient

    done = threading.Event()

    def client(seed: int) -> None:
        random = np.random.default_rng(seed)
        with ServingClient(grpc, served_as, 60) as busy:
            ask = served.default_api(busy, candidate, data)
            while not done.is_set():
                ask(records[: int(random.integers(1, 9))])

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def main() -> None:
    step, folder, names, *rest = sys.argv[1:]
    chosen = names.split(",")
    rows: list[dict[str, Any]] = []
    if step == "train":
        _train(Path(folder), chosen)
    elif step == "export":
        _export(Path(folder), chosen, rest[0])
    elif step == "validate":
        rows = list(_validate(Path(folder), chosen, rest[0], rest[1:]))
    else:
        under, addresses, clients, *exported = rest
        grpc, http = addresses.split()
        rows = list(_ask(Path(folder), chosen, under, grpc, http, int(clients), exported))
    sys.stdout.write(f"\n{json.dumps(rows)}\n")


if __name__ == "__main__":
    main()
