"""What `make bench-server` runs in processes of their own: the model's export, and the bare graph call.

`python server_runs.py export DIRECTORY` trains a DNNClassifier on made-up digits for a moment and exports it
to DIRECTORY/1; `python server_runs.py requests DIRECTORY` writes what clients send, and what one gets;
`python server_runs.py bare DIRECTORY CALLS` prints the CPU microseconds of one Session call, by request.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, predict_pb2

NAME = "digits"
PIXELS = 64
CLASSES = 10
SIZES = (1, 32)


def export(directory: Path) -> None:
    """Export version 1: 64 floats, layers of 64 and 32, ten classes."""
    columns = [tf.feature_column.numeric_column("pixels", [PIXELS])]
    with tempfile.TemporaryDirectory() as folder:
        estimator = tf.estimator.DNNClassifier(
            [64, 32], columns, n_classes=CLASSES, config=tf.estimator.RunConfig(folder, tf_random_seed=1)
        )
        estimator.train(_digits, steps=20)
        receiver = tf.estimator.export.build_parsing_serving_input_receiver_fn(
            tf.feature_column.make_parse_example_spec(columns)
        )
        exported = estimator.export_saved_model(f"{folder}/export", receiver)
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copytree(exported.decode(), directory / "1")


def _digits() -> Any:
    chance = random.Random(1)  # noqa: S311 (made-up pixels)
    pixels = [[chance.random() for _ in range(PIXELS)] for _ in range(64)]
    labels = [chance.randrange(CLASSES) for _ in pixels]
    return tf.data.Dataset.from_tensors(({"pixels": pixels}, labels)).repeat()


def examples(count: int) -> list[Any]:
    """Return the same tf.Examples each time."""
    chance = random.Random(count)  # noqa: S311 (made-up pixels)
    floats = [[chance.random() for _ in range(PIXELS)] for _ in range(count)]
    features = [tf.train.Feature(float_list=tf.train.FloatList(value=each)) for each in floats]
    return [tf.train.Example(features=tf.train.Features(feature={"pixels": each})) for each in features]


def requests() -> dict[str, Any]:
    """Return the requests by name: Classify1, Classify32, Predict1, Predict32."""
    made: dict[str, Any] = {}
    for count in SIZES:
        asked = examples(count)
        classify = classification_pb2.ClassificationRequest()
        classify.model_spec.name = NAME
        classify.input.example_list.examples.extend(asked)
        predict = predict_pb2.PredictRequest()
        predict.model_spec.name, predict.model_spec.signature_name = NAME, "predict"
        predict.inputs["examples"].CopyFrom(
            tf.make_tensor_proto([each.SerializeToString() for each in asked], tf.string)
        )
        made[f"Classify{count}"], made[f"Predict{count}"] = classify, predict
    return made


def write_requests(directory: Path) -> None:
    """Write each request as bytes, and as the body of an HTTP/2 request (gRPC's five bytes before it)."""
    for name, request in requests().items():
        serialized = request.SerializeToString()
        (directory / name).write_bytes(serialized)
        (directory / f"{name}.body").write_bytes(b"\0" + len(serialized).to_bytes(4, "big") + serialized)


def bare(directory: Path, calls: int) -> dict[str, float]:
    """CPU microseconds of a prepared Session callable on the same Examples, by request."""
    session = tf.compat.v1.Session(graph=tf.Graph())
    signatures = tf.compat.v1.saved_model.load(session, ["serve"], str(directory / "1")).signature_def
    measured = {}
    for count in SIZES:
        asked = [each.SerializeToString() for each in examples(count)]
        for method, key in (("Classify", "serving_default"), ("Predict", "predict")):
            signature = signatures[key]
            (feed,) = (info.name for info in signature.inputs.values())
            with session.graph.as_default():
                call = session.make_callable([each.name for each in signature.outputs.values()], [feed])
            for _ in range(calls // 10 + 1):
                call(asked)
            started = time.process_time()
            for _ in range(calls):
                call(asked)
            measured[f"{method}{count}"] = (time.process_time() - started) / calls * 1e6
    return measured


def main() -> None:
    """Do what the command line says."""
    what, directory = sys.argv[1], Path(sys.argv[2])
    if what == "export":
        export(directory)
    elif what == "requests":
        write_requests(directory)
    else:
        sys.stdout.write(json.dumps(bare(directory, int(sys.argv[3]))) + "\n")


if __name__ == "__main__":
    main()
