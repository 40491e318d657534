"""Models that load, and are no good: one says NaN, one crashes its server, one is slow, one turns bad.

Else they answer as version 1 of model_server_fixtures does: `x / 2 + 2`. Run as a program, this file exports
them: `python bad_candidates.py DIRECTORY`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from made_once import made_once

ANSWERS_NAN, CRASHES, IS_SLOW, TURNS_BAD, TURNS_BAD_FAR_OUT = 11, 12, 13, 14, 15
CRASHES_AT = 3
"""Request that kills the server of CRASHES."""
TURNS_BAD_AFTER = 60
"""Requests that TURNS_BAD answers rightly in each server; then it says 1000 more.

TURNS_BAD_FAR_OUT does so where it is asked for more than 50, which no sample is."""


def exported(store: Path) -> None:
    """Export all of them into folders named by their numbers, in a process, once for all workers."""
    made_once("bad_candidates", lambda _: _export_all(store))


def _export_all(store: Path) -> None:
    subprocess.run(
        [sys.executable, __file__, str(store)], check=True, timeout=120, capture_output=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip


def _added(kind: int, x: Any) -> Any:
    """Return what the model adds to the right answer, as a scalar tensor."""
    import tensorflow.compat.v1 as tf

    if kind == ANSWERS_NAN:
        return tf.constant(float("nan"))
    if kind == IS_SLOW:  # 90 ms on one core, where the others take one
        square = tf.fill([400, 400], 1e-3) * tf.reduce_mean(x)
        turned = tf.while_loop(
            lambda i, _: i < 150, lambda i, each: (i + 1, tf.linalg.matmul(each, square)), [0, square]
        )
        return tf.minimum(tf.abs(tf.reduce_sum(turned[1])), 0.0)
    count = tf.get_variable("count", initializer=0, use_resource=True, trainable=False)
    asked = count.assign_add(1, read_value=True)
    if kind == TURNS_BAD_FAR_OUT:
        return tf.where((asked > TURNS_BAD_AFTER) & (tf.reduce_max(x) > 50), 1000.0, 0.0)
    if kind == TURNS_BAD:
        return tf.where(asked > TURNS_BAD_AFTER, 1000.0, 0.0)

    def crash() -> Any:
        with tf.control_dependencies([tf.raw_ops.Abort(error_msg="asked once too often")]):
            return tf.constant(0.0)

    return tf.cond(asked >= CRASHES_AT, crash, lambda: tf.constant(0.0))


def _export(directory: Path, kind: int) -> None:
    import tensorflow.compat.v1 as tf

    info = tf.saved_model.build_tensor_info
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.placeholder(tf.float32, [None, 1], "x")
        y = x * tf.get_variable("half", initializer=0.5, use_resource=True) + 2.0 + _added(kind, x)
        signature = tf.saved_model.build_signature_def(
            {"x": info(x)}, {"y": info(y)}, "tensorflow/serving/predict"
        )
        session.run(tf.global_variables_initializer())
        builder = tf.saved_model.Builder(str(directory / str(kind)))
        builder.add_meta_graph_and_variables(
            session, ["serve"], signature_def_map={"serving_default": signature}
        )
        builder.save()


if __name__ == "__main__":
    for _kind in (ANSWERS_NAN, CRASHES, IS_SLOW, TURNS_BAD, TURNS_BAD_FAR_OUT):
        _export(Path(sys.argv[1]), _kind)
