"""Graphs that reach files, the network or Python are refused before they are published."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from pipelines import exported_digits, trained_digits
from tensorflow.core.protobuf import saved_model_pb2

from configs.schema.pipeline import ValidationConfig
from tasks.core.errors import Rejected
from tasks.exports import op_policy
from tasks.in_tensorflow import validate as program
from tasks.processes.tensorflow_process import ignore_progress

v1 = tf.compat.v1
raw = tf.raw_ops
SECRETS = "/proc/self/environ"


def write(folder: Path, output: Any, *, init: Any = None, restore: Any = None, assets: Any = ()) -> Path:
    """Write the graph of `output` as a SavedModel whose one signature answers with it."""
    saved_model = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    meta_graph = saved_model.meta_graphs.add()
    meta_graph.meta_info_def.tags.append("serve")
    meta_graph.graph_def.CopyFrom(output.graph.as_graph_def())
    meta_graph.signature_def["serving_default"].outputs["y"].name = output.name
    if init is not None:
        meta_graph.collection_def["saved_model_main_op"].node_list.value.append(init.name)
    if restore is not None:
        meta_graph.saver_def.restore_op_name = restore[0].name
        meta_graph.saver_def.filename_tensor_name = restore[1].name
    for tensor, filename in assets:
        meta_graph.asset_file_def.add(filename=filename).tensor_info.name = tensor.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "saved_model.pb").write_bytes(saved_model.SerializeToString())
    return folder


def table(path: Any) -> tuple[Any, Any]:
    """Return a look-up in a table, and the op that fills it from a file."""
    handle = raw.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64)
    filled = raw.InitializeTableFromTextFileV2(
        table_handle=handle, filename=path, key_index=-2, value_index=-1
    )
    found = raw.LookupTableFindV2(
        table_handle=handle, keys=tf.constant(["x"]), default_value=tf.constant(0, tf.int64)
    )
    return found, filled


def read_in_a_function() -> Any:
    return tf.function(lambda: tf.io.read_file(SECRETS))()


def read_in_a_nested_function() -> Any:
    inner = tf.function(tf.io.read_file)
    middle = tf.function(lambda name: inner(name) + "!")
    return tf.function(lambda: middle(tf.constant(SECRETS)))()


def read_in_a_while_body() -> Any:
    def body(index: Any, _: Any) -> tuple[Any, Any]:
        return index + 1, tf.io.read_file(SECRETS)

    return tf.while_loop(lambda index, _: index < 1, body, [0, tf.constant("")])[1]


def read_in_a_functional_while() -> Any:
    v1.enable_control_flow_v2()
    try:
        return read_in_a_while_body()
    finally:
        v1.disable_control_flow_v2()


def read_in_a_branch() -> Any:
    chosen = v1.placeholder(tf.bool, [])
    return tf.function(
        lambda value: tf.cond(value, lambda: tf.io.read_file(SECRETS), lambda: tf.constant(""))
    )(chosen)


def read_in_a_map() -> Any:
    return tf.function(lambda: tf.map_fn(tf.io.read_file, tf.constant([SECRETS])))()


def read_in_a_dataset() -> Any:
    def reduced() -> Any:
        data = tf.data.Dataset.from_tensors(SECRETS).map(tf.io.read_file)
        return data.reduce("", lambda _, value: value)

    return tf.function(reduced)()


def read_by_dataset_of(make: Callable[[], Any]) -> Callable[[], Any]:
    return tf.function(lambda: make().reduce(tf.constant(""), lambda _, value: value))


def write_as_a_side_effect() -> Any:
    with tf.control_dependencies([raw.WriteFile(filename="/tmp/x", contents="x")]):
        return tf.constant(1.0)


def write_that_nothing_reaches() -> Any:
    raw.WriteFile(filename="/tmp/x", contents="x")
    return tf.constant(1.0)


def save_from_a_signature() -> Any:
    saved = raw.SaveV2(prefix="/tmp/x", tensor_names=["a"], shape_and_slices=[""], tensors=[tf.constant(1.0)])
    with tf.control_dependencies([saved]):
        return tf.constant(1.0)


def save_from_a_function() -> Any:
    return tf.function(save_from_a_signature)()


def print_to_a_file() -> Any:
    with tf.control_dependencies([tf.print("x", output_stream="file:///tmp/x")]):
        return tf.constant(1.0)


def debug_to_a_file() -> Any:
    return raw.DebugIdentityV2(input=tf.constant(1.0), debug_urls=["file:///tmp/x"])


HOSTILE: dict[str, tuple[str, Callable[[], Any]]] = {
    "read in the graph": ("ReadFile", lambda: tf.io.read_file(SECRETS)),
    "read a name of the request": ("ReadFile", lambda: tf.io.read_file(v1.placeholder(tf.string, []))),
    "read in a function": ("ReadFile", read_in_a_function),
    "read in a nested function": ("ReadFile", read_in_a_nested_function),
    "read in a while body": ("ReadFile", read_in_a_while_body),
    "read in a functional while": ("ReadFile", read_in_a_functional_while),
    "read in a branch": ("ReadFile", read_in_a_branch),
    "read in a map": ("ReadFile", read_in_a_map),
    "read in a dataset": ("ReadFile", read_in_a_dataset),
    "list files": ("MatchingFiles", lambda: tf.io.matching_files("/etc/*")),
    "lines": ("TextLineDataset", read_by_dataset_of(lambda: tf.data.TextLineDataset(SECRETS))),
    "records": (
        "TFRecordDatasetV2|TFRecordDataset",
        read_by_dataset_of(lambda: tf.data.TFRecordDataset(SECRETS)),
    ),
    "list in a dataset": (
        "MatchingFilesDataset|MatchingFiles",
        read_by_dataset_of(lambda: tf.data.Dataset.list_files("/etc/*", shuffle=False)),
    ),
    "cache": (
        "CacheDatasetV2",
        read_by_dataset_of(lambda: tf.data.Dataset.from_tensors("x").cache("/tmp/x")),
    ),
    "a reader": (
        "ReaderReadV2|WholeFileReaderV2",
        lambda: raw.ReaderReadV2(
            reader_handle=raw.WholeFileReaderV2(), queue_handle=raw.FIFOQueueV2(component_types=[tf.string])
        ).value,
    ),
    "write as a side effect": ("WriteFile", write_as_a_side_effect),
    "write that nothing reaches": ("WriteFile", write_that_nothing_reaches),
    "python": ("PyFunc", lambda: v1.py_func(lambda: 1.0, [], tf.float32)),
    "eager python": ("EagerPyFunc", lambda: tf.py_function(lambda: 1.0, [], tf.float32)),
    "python in a function": (
        "PyFunc|PyFuncStateless|EagerPyFunc",
        tf.function(lambda: tf.numpy_function(lambda: 1.0, [], tf.float32)),
    ),
    "save from a signature": ("SaveV2", save_from_a_signature),
    "save from a function": ("SaveV2", save_from_a_function),
    "restore from a signature": (
        "RestoreV2",
        lambda: raw.RestoreV2(
            prefix="/models/other/1/variables/variables", tensor_names=["w"], shape_and_slices=[""],
            dtypes=[tf.float32],
        )[0],
    ),
    "print to a file": ("PrintV2", print_to_a_file),
    "debug to a file": ("DebugIdentityV2", debug_to_a_file),
    "a vocabulary of candidates": (
        "FixedUnigramCandidateSampler",
        lambda: raw.FixedUnigramCandidateSampler(
            true_classes=tf.constant([[1]], tf.int64), num_true=1, num_sampled=1, unique=True, range_max=9,
            vocab_file=SECRETS,
        ).sampled_candidates,
    ),
    "a graph in a string": (
        "DatasetFromGraph",
        lambda: raw.DatasetCardinality(input_dataset=raw.DatasetFromGraph(graph_def="…")),
    ),
    "another process": (
        "CollectiveReduce",
        lambda: raw.CollectiveReduce(
            input=tf.constant([1.0]), group_size=2, group_key=1, instance_key=1, merge_op="Add",
            final_op="Id", subdiv_offsets=[0],
        ),
    ),
    "a table that a signature fills": (
        "InitializeTableFromTextFileV2",
        lambda: _after(*table(tf.constant(SECRETS))),
    ),
}  # fmt: skip


def _after(found: Any, op: Any) -> Any:
    with tf.control_dependencies([op]):
        return tf.identity(found)


def refusal(folder: Path, *allowed: str) -> str:
    with pytest.raises(Rejected) as caught:
        op_policy.require_contained(folder, allowed)
    (check,) = caught.value.checks
    assert (check.name, check.passed) == ("ops", False)
    return caught.value.message


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_graph_is_refused(tmp_path: Path, case: str) -> None:
    """By the name of the op, and the node that has it; named in allow_ops, it passes."""
    ops, build = HOSTILE[case]
    with tf.Graph().as_default():
        folder = write(tmp_path, build())
    message = refusal(folder)
    names = ops.split("|")
    assert any(f"the graph has {op} in node " in message for op in names), message
    op_policy.require_contained(
        folder, [*names, "WholeFileReaderV2", "FIFOQueueV2", "CreateSummaryFileWriter"]
    )


def test_an_init_op_reads_assets_only(tmp_path: Path) -> None:
    """A vocabulary is a table from an asset of the version; from elsewhere it is a file of the machine."""
    with tf.Graph().as_default():
        path = tf.constant("vocabulary.txt")
        found, filled = table(tf.identity(path))
        op_policy.require_contained(
            write(tmp_path / "good", found, init=filled, assets=[(path, "vocabulary.txt")])
        )
        assert "its file is not an asset" in refusal(write(tmp_path / "bad", found, init=filled))
        message = refusal(write(tmp_path / "late", _after(found, filled), assets=[(path, "vocabulary.txt")]))
        assert "its file is not an asset that the init op reads" in message


@pytest.mark.parametrize("filename", ["../../secrets.txt", "/etc/passwd", "link.txt"])
def test_an_asset_is_a_file_of_the_version(tmp_path: Path, filename: str) -> None:
    """Servers join its name to the folder, and follow links."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "link.txt").symlink_to("/etc/passwd")
    with tf.Graph().as_default():
        path = tf.constant("vocabulary.txt")
        found, filled = table(path)
        folder = write(tmp_path, found, init=filled, assets=[(path, filename)])
    assert f"asset '{filename}': it leads out of the version's folder" in refusal(folder)


def test_a_table_in_a_function_that_the_init_op_calls(tmp_path: Path) -> None:
    """The path comes as an argument, as TensorFlow 2 exports it; in a loop it may change."""

    def fill(path: Any) -> Any:
        return _after(*table(path))

    with tf.Graph().as_default():
        path, other = tf.constant("vocabulary.txt"), tf.constant(SECRETS)
        called = tf.function(fill)
        good, bad = called(path), called(other)
        assets = [(path, "vocabulary.txt")]
        op_policy.require_contained(write(tmp_path / "good", tf.constant(1.0), init=good.op, assets=assets))
        assert "is not an asset" in refusal(
            write(tmp_path / "bad", tf.constant(1.0), init=bad.op, assets=assets)
        )


def test_the_restore_op_reads_the_variables_only(tmp_path: Path) -> None:
    """Not another checkpoint, and it writes none."""
    with tf.Graph().as_default():
        prefix = v1.placeholder_with_default("model", [])
        names: dict[str, Any] = {"tensor_names": ["w"], "shape_and_slices": [""], "dtypes": [tf.float32]}
        good = raw.RestoreV2(prefix=prefix, **names)[0].op
        bad = raw.RestoreV2(prefix="/models/other/variables", **names)[0].op
        saved = raw.SaveV2(
            prefix=prefix, tensor_names=["w"], shape_and_slices=[""], tensors=[tf.constant(1.0)]
        )
        answer = tf.constant(1.0)
        op_policy.require_contained(write(tmp_path / "good", answer, restore=(good, prefix)))
        assert "another file than" in refusal(write(tmp_path / "bad", answer, restore=(bad, prefix)))
        assert "SaveV2" in refusal(write(tmp_path / "saves", answer, restore=(saved, prefix)))


def test_models_of_tensorflow_2_with_a_vocabulary_pass(tmp_path: Path) -> None:
    """As tf.saved_model.save writes them: variables, an asset, functions that save and restore."""

    class Model(tf.Module):
        def __init__(self) -> None:
            (tmp_path / "words.txt").write_text("a\nb\n")
            filler = tf.lookup.TextFileInitializer(
                str(tmp_path / "words.txt"), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64,
                tf.lookup.TextFileIndex.LINE_NUMBER,
            )  # fmt: skip
            self.table = tf.lookup.StaticHashTable(filler, -1)
            self.weights = tf.Variable([1.0, 2.0, 3.0])

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def answer(self, words: Any) -> Any:
            return {"y": tf.gather(self.weights, self.table.lookup(words) + 1)}

    with tf.init_scope():
        model = Model()
        tf.saved_model.save(model, str(tmp_path / "export"), signatures=model.answer)
    op_policy.require_contained(tmp_path / "export")


def test_validation_refuses_before_anything_is_loaded(tmp_path: Path) -> None:
    """The digits pass; with ReadFile in a function of the library that nothing calls, they do not."""
    digits = exported_digits()
    op_policy.require_contained(digits.path)
    shutil.copytree(digits.path, tmp_path / "candidate")
    file = tmp_path / "candidate" / "saved_model.pb"
    saved_model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    function = saved_model.meta_graphs[0].graph_def.library.function.add()
    function.signature.name = "hidden"
    function.node_def.add(name="read", op="ReadFile", input=["name"])
    file.write_bytes(saved_model.SerializeToString())
    candidate = replace(digits, path=tmp_path / "candidate")
    with pytest.raises(Rejected, match="ReadFile in node read of function hidden") as caught:
        program.run(ignore_progress, ValidationConfig(), trained_digits().config.data, candidate)
    assert "validation.allow_ops: [ReadFile]" in caught.value.hint
