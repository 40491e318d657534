"""SavedModels of every kind that a server must load, exported by a child process.

Each has a vocabulary (an asset), a table that an init op fills from it, and a variable: the signature
"serving_default" answers `place of the word in the vocabulary + weight`. Run as a program:
`python saved_model_exports.py DIRECTORY`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WORDS = ("keel", "mast", "sail")


def export(directory: Path) -> None:
    """Write version 1 of the models "tf1" (two MetaGraphs), "tf1_text" and "tf2" under `directory`."""
    subprocess.run(
        [sys.executable, __file__, str(directory)],
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
        timeout=120,
        capture_output=True,
    )


def _graph(tf, vocabulary: Path):  # type: ignore[no-untyped-def]
    """Build the TF1 graph; return its signatures for a weight that is added once more for each tag."""
    initializer = tf.lookup.TextFileInitializer(
        str(vocabulary), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE,
        tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER,
    )  # fmt: skip
    table = tf.lookup.StaticHashTable(initializer, -1)
    words = tf.placeholder(tf.string, [None], "words")
    weight = tf.get_variable("weight", initializer=100.0)
    places = tf.cast(table.lookup(words), tf.float32)

    def signatures(times: float) -> object:
        info = tf.saved_model.build_tensor_info
        signature = tf.saved_model.build_signature_def(
            {"words": info(words)}, {"y": info(places + weight * times)}, "tensorflow/serving/predict"
        )
        return {"serving_default": signature}

    return signatures


def _export_tf1(base_path: Path, vocabulary: Path, as_text: bool) -> None:
    import tensorflow.compat.v1 as tf

    with tf.Graph().as_default(), tf.Session() as session:
        signatures = _graph(tf, vocabulary)
        session.run([tf.global_variables_initializer(), tf.tables_initializer()])
        builder = tf.saved_model.Builder(str(base_path / "1"))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map=signatures(1.0),
            assets_collection=tf.get_collection(tf.GraphKeys.ASSET_FILEPATHS),
            main_op=tf.tables_initializer(),
        )
        # The graph's collections already hold the asset and the init op.
        builder.add_meta_graph(["serve", "doubled"], signature_def_map=signatures(2.0))
        builder.save(as_text=as_text)


def _export_tf2(base_path: Path, vocabulary: Path) -> None:
    import tensorflow as tf

    class Places(tf.Module):
        def __init__(self) -> None:
            self.vocabulary = tf.saved_model.Asset(str(vocabulary))
            initializer = tf.lookup.TextFileInitializer(
                self.vocabulary, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE,
                tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER,
            )  # fmt: skip
            self.table = tf.lookup.StaticHashTable(initializer, -1)
            self.weight = tf.Variable(100.0)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "words")])
        def __call__(self, words: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": tf.cast(self.table.lookup(words), tf.float32) + self.weight}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
        def regress(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            parsed = tf.io.parse_example(inputs, {"word": tf.io.FixedLenFeature([], tf.string)})
            return {"outputs": self(parsed["word"])["y"]}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
        def classify(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            scores = tf.expand_dims(self.regress(inputs)["outputs"], 1)
            return {"scores": tf.concat([scores, -scores], 1)}

    module = Places()
    signatures = {"serving_default": module.__call__, "regress": module.regress, "classify": module.classify}
    tf.saved_model.save(module, str(base_path / "1"), signatures=signatures)


if __name__ == "__main__":
    _directory = Path(sys.argv[1])
    _vocabulary = _directory / "vocabulary.txt"
    _vocabulary.write_text("".join(f"{word}\n" for word in WORDS))
    _export_tf1(_directory / "tf1", _vocabulary, as_text=False)
    _export_tf1(_directory / "tf1_text", _vocabulary, as_text=True)
    _export_tf2(_directory / "tf2", _vocabulary)
    _vocabulary.unlink()  # the copies in the assets are what counts
