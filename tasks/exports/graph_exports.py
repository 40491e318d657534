"""A graph pipeline's SavedModel: several MetaGraphs that share one set of variables and assets.

`tf.compat.v1.train.Saver` restores the checkpoint, `tf.compat.v1.saved_model.Builder` writes what
`simple_save` would for one MetaGraph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.saved_model.model_utils import export_utils

from configs.schema.pipeline import DataConfig, ExportConfig
from tasks.core.artifacts import Checkpoint
from tasks.core.errors import ModelError
from tasks.estimators.graph_pipelines import SERVE, TRAIN, GraphFunction
from tasks.examples.tf_examples import Preprocess, examples_spec, parsing_spec, split_labels

_TRAIN_OP_COLLECTION = "saved_model_train_op"  # tensorflow/python/saved_model/constants.py, TRAIN_OP_KEY
_SUPERVISED_TRAINING = "tensorflow/supervised/training"


def write(
    folder: Path, graph: GraphFunction, export: ExportConfig, data: DataConfig,
    receiver: Callable[[], Any], preprocess: Preprocess | None, checkpoint: Checkpoint,
) -> Path:  # fmt: skip
    """Write the SavedModel into `folder`, which must not exist, and return it.

    Variables are saved once, from the MetaGraph that has most of them: the one for training, if any.
    """
    builder = tf.compat.v1.saved_model.Builder(str(folder))
    served: dict[str, set[str]] = {}
    for first, tags in enumerate(sorted(export.meta_graphs, key=lambda each: TRAIN not in each)):
        with tf.Graph().as_default():
            tf.compat.v1.train.create_global_step()
            if SERVE in tags:
                signatures = _serving(graph, tags, receiver())
                served[",".join(tags)] = set(signatures)
            else:
                signatures = _training(graph, tags, data, preprocess)
            _add(builder, tags, signatures, checkpoint if first == 0 else None)
    _require_proven(served)
    builder.save(export.as_text)
    return folder


def _add(builder: Any, tags: Sequence[str], signatures: Any, checkpoint: Checkpoint | None) -> None:
    """Add the current graph; with a checkpoint also its variables, restored from there."""
    initializers = (tf.compat.v1.local_variables_initializer(), tf.compat.v1.tables_initializer())
    saver = tf.compat.v1.train.Saver(sharded=True)
    arguments: dict[str, Any] = {
        "signature_def_map": signatures, "main_op": tf.group(*initializers), "strip_default_attrs": True,
        "assets_collection": tf.compat.v1.get_collection(tf.compat.v1.GraphKeys.ASSET_FILEPATHS),
        "saver": saver,
    }  # fmt: skip
    if checkpoint is None:
        builder.add_meta_graph(list(tags), **arguments)
        return
    with tf.compat.v1.Session(config=tf.compat.v1.ConfigProto(allow_soft_placement=True)) as session:
        saver.restore(session, str(checkpoint.prefix))
        builder.add_meta_graph_and_variables(session, list(tags), **arguments)


def _serving(graph: GraphFunction, tags: Sequence[str], receiver: Any) -> Any:
    """Build the graph on what a server receives; return its SignatureDefs, as an Estimator names them."""
    outputs = graph.export_outputs(graph.build(receiver.features, None, tags))
    return export_utils.build_all_signature_defs(
        receiver.receiver_tensors, outputs, receiver.receiver_tensors_alternatives
    )


def _require_proven(served: Mapping[str, set[str]]) -> None:
    """Raise ModelError where a MetaGraph has a signature that `serve` has not: nothing says what is right."""
    for tags, names in served.items():
        for name in sorted(names - served[SERVE]):
            message = f"the MetaGraph {tags} has the signature {name!r}, which the one tagged {SERVE} has not"
            raise ModelError(message, f"add it there, or leave it out of {tags}")


def _training(
    graph: GraphFunction, tags: Sequence[str], data: DataConfig, preprocess: Preprocess | None
) -> Any:
    """Build the graph on tf.Examples with their labels; `train` is the signature that gives the loss."""
    examples = tf.compat.v1.placeholder(tf.string, [None], name="input_example_tensor")
    parsed = tf.io.parse_example(examples, parsing_spec(examples_spec(data)))
    features, labels = split_labels(parsed, data, preprocess)
    built = graph.build(features, labels, tags)
    tf.compat.v1.add_to_collection(_TRAIN_OP_COLLECTION, built["train_op"])
    info = tf.compat.v1.saved_model.build_tensor_info
    return {
        "train": tf.compat.v1.saved_model.build_signature_def(
            {"examples": info(examples)}, {"loss": info(built["loss"])}, _SUPERVISED_TRAINING
        )
    }
