"""Small graphs whose rows are independent, or depend on one another in devious ways.

Run as a program (`python row_graphs.py DIRECTORY`), this file exports them as version 1 of two models, a
signature each: "rows" (tf.functions) and "rows_v1" (parsed tf.Examples, and control flow of TensorFlow 1).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

COLUMNS = 3
WORDS = ("keel", "mast", "sail", "")


def export(directory: Path) -> None:
    """Write the models "rows" and "rows_v1" under `directory`, by a child process."""
    subprocess.run(
        [sys.executable, __file__, str(directory)],
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
        timeout=300,
    )


def _functions(tf: Any) -> tuple[dict[str, Callable[[Any], Any]], dict[str, Callable[[Any], Any]]]:
    """Return functions of rows x by name: independent ones, and dependent ones."""
    weights = tf.Variable([[1.0, -2.0], [0.5, 3.0], [-1.0, 0.25]])
    table = tf.Variable(tf.reshape(tf.range(40.0), [20, 2]))
    offset = tf.Variable(0.5)
    mean = tf.Variable([0.0, 1.0, 2.0])
    moving = tf.Variable([0.0] * COLUMNS)

    @tf.function
    def inner_dense(x):
        return tf.nn.relu(x @ weights + [0.5, 0.25])

    @tf.function
    def inner_center(x):
        return x - tf.reduce_mean(x, 0)

    def places(x, most):
        return tf.cast(tf.clip_by_value(tf.abs(x) * 3, 0, most - 1), tf.int32)

    def batch_size(x):
        return tf.shape(x)[0]

    def batch_normalized(x):
        found, variance = tf.nn.moments(x, [0])
        with tf.control_dependencies([moving.assign_sub(0.1 * (moving - found))]):
            return (x - found) * tf.math.rsqrt(variance + 0.001)

    def only_counts(x):
        with tf.control_dependencies([moving.assign_add(tf.ones([COLUMNS]))]):
            return tf.identity(x) * 2

    def carried(x):
        return tf.scan(lambda state, row: state * 0.5 + row, x, tf.zeros([COLUMNS]))

    def mapped_by_number(x):
        rows = tf.range(batch_size(x))
        return tf.map_fn(lambda i: x[i] * tf.cast(i, tf.float32), rows, fn_output_signature=tf.float32)

    def looped_over_rows(x):
        total = tf.while_loop(
            lambda i, _: i < batch_size(x),
            lambda i, state: (i + 1, state + x[i]),
            [tf.constant(0), tf.zeros([COLUMNS])],
        )[1]
        return x - total

    def grouped(x):
        groups = places(x[:, 0], 4)
        return tf.gather(tf.math.unsorted_segment_sum(x, groups, 4), groups)

    def counted(x):
        _, index, count = tf.unique_with_counts(places(x[:, 0], 4))
        return tf.expand_dims(tf.cast(tf.gather(count, index), tf.float32), 1) * x

    def places_of_unique(x):
        return tf.expand_dims(tf.cast(tf.unique(places(x[:, 0], 4))[1], tf.float32), 1) + x

    def ranked(x):
        return tf.expand_dims(tf.cast(tf.argsort(tf.argsort(x[:, 0])), tf.float32), 1) + 0 * x

    def of_sparse_columns(x):
        sparse = tf.sparse.from_dense(tf.nn.relu(x))
        return x + tf.sparse.reduce_max(sparse, 0)

    def sparse_segments(x):
        ids = tf.sort(places(x[:, 0], 3))
        sums = tf.sparse.segment_sum(x, tf.range(batch_size(x)), ids, num_segments=3)
        return x + tf.reduce_sum(sums * [[1.0], [2.0], [3.0]], 0)

    def partitioned(x):
        positive = tf.cast(x[:, 0] > 0, tf.int32)
        parts = tf.dynamic_partition(x, positive, 2)
        numbers = tf.dynamic_partition(tf.range(batch_size(x)), positive, 2)
        centered = [part - tf.math.divide_no_nan(tf.reduce_sum(part, 0), 2.0) for part in parts]
        return tf.dynamic_stitch(numbers, centered)

    def flattened(x):
        return tf.reshape(tf.nn.softmax(tf.reshape(x, [1, -1])), [-1, COLUMNS])

    def until_large(x):
        return tf.while_loop(lambda y: tf.reduce_max(y) < 100, lambda y: [y * 2 + 1], [tf.abs(x)])[0]

    independent = {
        "dense": lambda x: tf.nn.softmax(tf.nn.relu(x @ weights + [0.5, 0.25])),
        "nested": lambda x: inner_dense(x) + tf.reduce_sum(x, 1, keepdims=True),
        "layer_norm": lambda x: (x - tf.reduce_mean(x, 1, True)) / (tf.math.reduce_std(x, 1, True) + 1),
        "columns": lambda x: tf.concat([x[:, 1:], *tf.split(x, 3, 1), tf.stack([x[:, 0], x[:, 1]], 1)], 1),
        "reshaped": lambda x: tf.reshape(tf.reshape(x, [-1, COLUMNS, 1]) @ [[2.0, 3.0]], [batch_size(x), 6]),
        "time_distributed": lambda x: tf.reshape(tf.reshape(x, [-1, 1]) @ [[1.0, 2.0]], [-1, COLUMNS, 2]),
        "tiled": lambda x: x + tf.tile([[1.0, 2, 3]], [batch_size(x), 1]) + tf.fill([batch_size(x), 1], 4.0),
        "tiled_labels": lambda x: x[:, :2] + tf.tile(table[3][tf.newaxis, :], [batch_size(x), 1]),
        "one_hot": lambda x: tf.one_hot(tf.argmax(x, 1), COLUMNS) + tf.cast(x > 0.5, tf.float32),
        "selected": lambda x: tf.where(x > 0, x, tf.zeros_like(x)),
        "fixed_loop": lambda x: tf.while_loop(lambda i, _: i < 4, lambda i, y: (i + 1, y / 2 + x), [0, x])[1],
        "fixed_condition": lambda x: tf.cond(offset > 0, lambda: x * 2, lambda: x * 3),
        "embedded": lambda x: tf.reduce_sum(tf.gather(table, places(x, 20)), 1),
        "row_top_k": lambda x: tf.math.top_k(x, 2)[0],
        "along_columns": lambda x: tf.cumsum(x, 1) + tf.reverse(x, [1]),
        "einsum": lambda x: tf.einsum("bi,ij->bj", x, weights),
        "outer": lambda x: tf.transpose(tf.expand_dims(x, 2) @ tf.expand_dims(x, 1), [0, 2, 1]),
        "normed": lambda x: tf.nn.batch_normalization(x, mean, tf.exp(mean) * offset, None, None, 0.1),
        "text": lambda x: tf.cast(tf.strings.to_hash_bucket_fast(tf.strings.as_string(x), 7), tf.float32),
        "convolved": lambda x: tf.reshape(
            tf.nn.conv2d(tf.reshape(x, [-1, 1, COLUMNS, 1]), tf.ones([1, 2, 1, 2]), 1, "SAME"), [-1, 6]
        ),
        "unit_rows": lambda x: tf.nn.l2_normalize(x, 1),
    }  # fmt: skip
    dependent = {
        "listwise": lambda x: tf.nn.softmax(x, axis=0),
        "centered": lambda x: x - tf.reduce_mean(x, 0, keepdims=True),
        "hidden_in_a_function": lambda x: inner_dense(inner_center(x)),
        "share_of_all": lambda x: x / (1 + tf.reduce_sum(tf.abs(x))),
        "cumulated": lambda x: tf.cumsum(x, 0),
        "reversed": lambda x: tf.reverse(x, [0]) + x,
        "sliced_backwards": lambda x: x[::-1],
        "less_the_first": lambda x: x - x[:1],
        "rolled": lambda x: tf.roll(x, 1, axis=0) + x,
        "sorted": lambda x: tf.sort(x, axis=0),
        "top_of_rows": lambda x: x - tf.math.top_k(tf.transpose(x), 1)[0][:, 0],
        "twice_transposed": lambda x: tf.transpose(tf.nn.softmax(tf.transpose(x))),
        "in_batch_negatives": lambda x: x - tf.nn.softmax(x @ tf.transpose(x)) @ x,
        "broadcast_against_rows": lambda x: x + tf.reduce_mean(x[:, 0] + x[:, :1], 1, keepdims=True),
        "flattened": flattened,
        "numbered": lambda x: x + tf.expand_dims(tf.cast(tf.range(batch_size(x)), tf.float32), 1),
        "gathered_by_number": lambda x: tf.gather(table, tf.range(batch_size(x))) + x[:, :2],
        "gathered_backwards": lambda x: tf.gather(x, batch_size(x) - 1 - tf.range(batch_size(x))),
        "by_batch_size": lambda x: x / tf.cast(batch_size(x), tf.float32),
        "if_more_rows": lambda x: tf.cond(batch_size(x) > 2, lambda: x * 2, lambda: x),
        "if_any": lambda x: tf.cond(tf.reduce_any(x > 1), lambda: x * 2, lambda: x),
        "until_large": until_large,
        "where_positions": lambda x: x + tf.cast(tf.reduce_sum(tf.where(x[:, 0] > -9)), tf.float32),
        "unique_counts": counted,
        "unique_places": places_of_unique,
        "ranked": ranked,
        "grouped": grouped,
        "sparse_columns": of_sparse_columns,
        "sparse_segments": sparse_segments,
        "partitioned": partitioned,
        "scattered": lambda x: tf.tensor_scatter_nd_update(x, [[0, 0]], [9.0]),
        "random_by_place": lambda x: x + tf.random.stateless_uniform(tf.shape(x), [1, 2]),
        "batch_normalized": batch_normalized,
        "counts_runs": only_counts,
        "scanned": carried,
        "mapped_by_number": mapped_by_number,
        "looped_over_rows": looped_over_rows,
        "unit_matrix": tf.nn.l2_normalize,
        "largest_row": lambda x: tf.one_hot(tf.argmax(x, 0), batch_size(x), axis=0),
        "linspace": lambda x: x * tf.expand_dims(tf.linspace(0.0, 1.0, batch_size(x)), 1),
    }  # fmt: skip
    return independent, dependent


def _signature(tf: Any, function: Callable[[Any], Any]) -> Any:
    def answer(x):
        y = function(x)
        return {"y": tf.ensure_shape(y, [None] * (2 if y.shape.rank is None else y.shape.rank))}

    return tf.function(answer).get_concrete_function(tf.TensorSpec([None, COLUMNS], tf.float32, "x"))


def _export_functions(directory: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    independent, dependent = _functions(tf)
    signatures = {}
    for prefix, functions in (("independent", independent), ("dependent", dependent)):
        for name, function in functions.items():
            signatures[f"{prefix}_{name}"] = _signature(tf, function)
    module.their_variables = [v for each in signatures.values() for v in each.variables]
    tf.saved_model.save(module, str(directory), signatures=signatures)


def _v1_graph(tf: Any) -> dict[str, tuple[Any, Any]]:
    """Return inputs and outputs by the names of signatures."""
    x = tf.placeholder(tf.float32, [None, COLUMNS], "x")
    serialized = tf.placeholder(tf.string, [None], "serialized")
    parsed = tf.io.parse_example(
        serialized,
        {"words": tf.io.VarLenFeature(tf.string), "x": tf.io.FixedLenFeature([COLUMNS], tf.float32)},
    )
    switch = tf.get_variable("switch", initializer=1.0)
    steps = tf.get_variable("steps", initializer=0.0, use_resource=False)
    vocabulary = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(list(WORDS[:3]), tf.range(3, dtype=tf.int64)), -1
    )
    words = parsed["words"]
    ids = tf.SparseTensor(words.indices, vocabulary.lookup(words.values), words.dense_shape)
    vectors = tf.get_variable("vectors", initializer=tf.reshape(tf.range(6.0), [3, 2]) + 1)
    known_ids = tf.sparse.retain(ids, ids.values >= 0)
    dense_ids = tf.sparse_tensor_to_dense(ids, -1)
    lengths = tf.cast(tf.strings.length(tf.sparse_tensor_to_dense(words, "")), tf.float32)
    safe = tf.nn.safe_embedding_lookup_sparse(vectors, ids, combiner="sqrtn")
    x_of_examples = parsed["x"]
    with tf.control_dependencies([steps.assign_add(1.0)]):
        counted = tf.identity(x)
    mean = tf.get_variable("mean", initializer=[0.0] * COLUMNS, use_resource=True)

    def assign_and_read() -> Any:
        with tf.control_dependencies([mean.assign(tf.reduce_mean(x, 0))]):
            return mean.read_value()

    return {
        "independent_v1_loop": (x, tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, y * 2), [0, x])[1]),
        "independent_v1_condition": (x, tf.cond(switch > 0, lambda: x + 1, lambda: x - 1)),
        "independent_v1_softmax": (x, tf.nn.softmax(x)),
        "independent_embedding": (serialized, safe),
        "independent_multi_hot": (serialized, tf.reduce_sum(tf.one_hot(dense_ids, 3), 1)),
        "independent_dense": (serialized, tf.concat([x_of_examples, safe], 1)),
        "independent_sparse_matmul": (
            serialized,
            tf.sparse_tensor_dense_matmul(tf.sparse.from_dense(tf.nn.relu(x_of_examples)), tf.ones([3, 2])),
        ),
        "dependent_v1_loop": (x, tf.while_loop(lambda y: tf.reduce_sum(y) < 50, lambda y: y + 1, [x * x])),
        "dependent_v1_condition": (x, tf.cond(tf.reduce_any(x > 1), lambda: x + 1, lambda: x - 1)),
        "dependent_v1_counts_runs": (x, counted * 2),
        "dependent_v1_through_a_variable": (x, x - tf.CriticalSection().execute(assign_and_read)),
        "dependent_padding": (serialized, tf.reduce_mean(lengths, 1, keepdims=True)),
        "dependent_padded_mean": (serialized, tf.reduce_mean(tf.one_hot(dense_ids, 3), 1)),
        "dependent_rows_without_words": (
            serialized,
            tf.nn.embedding_lookup_sparse(vectors, known_ids, None, combiner="sum"),
        ),
        "dependent_all_words": (
            serialized,
            x_of_examples + tf.reduce_sum(tf.gather(vectors, tf.nn.relu(ids.values))),
        ),
        "dependent_longest": (
            serialized,
            x_of_examples * tf.cast(words.dense_shape[1], tf.float32),
        ),
    }  # fmt: skip


def _export_v1(directory: Path) -> None:
    import tensorflow.compat.v1 as tf

    tf.disable_control_flow_v2()
    with tf.Graph().as_default(), tf.Session() as session:
        signatures = {}
        for name, (fed, fetched) in _v1_graph(tf).items():
            info = tf.saved_model.build_tensor_info
            fetched.set_shape([None, *fetched.shape[1:]])
            signatures[name] = tf.saved_model.build_signature_def(
                {"x": info(fed)}, {"y": info(fetched)}, "tensorflow/serving/predict"
            )
        session.run([tf.global_variables_initializer(), tf.tables_initializer()])
        builder = tf.saved_model.Builder(str(directory))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map=signatures,
            main_op=tf.tables_initializer(),
            strip_default_attrs=True,
        )
        builder.save()


if __name__ == "__main__":
    _export_functions(Path(sys.argv[1]) / "rows" / "1")
    _export_v1(Path(sys.argv[1]) / "rows_v1" / "1")
