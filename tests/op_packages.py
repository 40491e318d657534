"""Export a small model that has the ops of a package: `python op_packages.py KIND FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf


def text() -> Any:
    """Return the number of words, and the text without capitals."""
    import tensorflow_text

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="x")])
    def call(x: Any) -> dict[str, Any]:
        words = tensorflow_text.WhitespaceTokenizer().tokenize(x).row_lengths()
        return {"words": words, "folded": tensorflow_text.case_fold_utf8(x)}

    return call


def table() -> Any:
    """Return a look-up in a table that grows: 7 has an entry, other keys are ones."""
    import tensorflow_recommenders_addons as tfra

    entries = tfra.dynamic_embedding.get_variable(
        "entries", key_dtype=tf.int64, value_dtype=tf.float32, dim=2, devices=["/CPU:0"],
        initializer=tf.ones_initializer(),
    )  # fmt: skip
    entries.upsert(tf.constant([7], tf.int64), tf.constant([[3.0, 4.0]]))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="x")])
    def call(x: Any) -> dict[str, Any]:
        return {"y": entries.lookup(x)}

    call.entries = entries  # what is saved has to hold it
    return call


def forest(folder: str) -> None:
    """Write a forest that was trained to tell numbers above 200 from others."""
    import tensorflow_decision_forests as tfdf

    x = np.arange(400, dtype=np.float32)
    data = tf.data.Dataset.from_tensor_slices(({"x": x}, (x > 200).astype(np.int64))).batch(100)
    model = tfdf.keras.RandomForestModel(num_trees=5, verbose=0)
    model.fit(data)
    model.save(folder)


def main() -> None:
    """Write the SavedModel."""
    kind, folder = sys.argv[1:]
    if kind == "forest":
        forest(folder)
        return
    makers: dict[str, Callable[[], Any]] = {"text": text, "table": table}
    module = tf.Module()
    module.call = makers[kind]()
    module.entries = getattr(module.call, "entries", None)
    tf.saved_model.save(module, folder, signatures={"serving_default": module.call})


if __name__ == "__main__":
    main()
