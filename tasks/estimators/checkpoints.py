"""Checkpoints on disk: which there are, which are whole, and which one a path means."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph
from tensorflow.python.trackable.base import OBJECT_GRAPH_PROTO_KEY

from tasks.core.errors import ModelError
from tasks.state import model_versions

_SET_ASIDE = "damaged"
# What a status of the C++ reader becomes: its data end too early as an IndexError, for one.
_READERS_ERRORS = (tf.errors.OpError, LookupError, RuntimeError, ValueError)


def saved(model_dir: Path) -> dict[int, Path]:
    """Return the checkpoints that an Estimator left in `model_dir`, step to prefix, in rising order.

    Half of one counts: a kill may leave the data without its index, or the other way round.
    """
    found = {file.with_suffix("") for file in model_dir.glob("model.ckpt-*.*") if file.is_file()}
    steps = {prefix.name.rpartition("-")[2]: prefix for prefix in found}
    return {int(step): steps[step] for step in sorted(filter(str.isdigit, steps), key=int)}


def computes_in_double(prefix: Path) -> bool:
    """Return whether the checkpoint has float variables, and all of them are float64."""
    types = tf.train.load_checkpoint(str(prefix)).get_variable_to_dtype_map().values()
    return {each for each in types if each.is_floating} == {tf.float64}


def keys(reader: Any) -> dict[str, str]:
    """Return variable name to the key of its value in a checkpoint; the same unless that is object-based.

    `model_to_estimator` writes object-based ones by default: keys are paths in the Keras model
    (`layer_with_weights-0/kernel/.ATTRIBUTES/VARIABLE_VALUE`), and the names are in a graph of objects.
    """
    if not reader.has_tensor(OBJECT_GRAPH_PROTO_KEY):
        return {name: name for name in reader.get_variable_to_shape_map()}
    graph = TrackableObjectGraph.FromString(reader.get_tensor(OBJECT_GRAPH_PROTO_KEY))
    values = [attribute for node in graph.nodes for attribute in node.attributes]
    return {value.full_name or value.checkpoint_key: value.checkpoint_key for value in values}


def step_of(prefix: Path) -> int:
    """Return the global step that is stored in a checkpoint; 0 if there is none."""
    reader = tf.train.load_checkpoint(str(prefix))
    key = keys(reader).get(tf.compat.v1.GraphKeys.GLOBAL_STEP)
    return int(reader.get_tensor(key)) if key is not None else 0


def damage(prefix: Path) -> str | None:
    """Return what is wrong with a checkpoint; None if every tensor is readable and matches its checksum."""
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        for name in reader.get_variable_to_shape_map():
            try:
                reader.get_tensor(name)
            except tf.errors.InternalError:  # of a dtype that NumPy has not
                continue
    except _READERS_ERRORS as error:
        return str(error).partition("\n")[0]
    return None


def settle(model_dir: Path, tell: Callable[[str], None]) -> int | None:
    """Make the newest whole checkpoint the one that training goes on from; return its step.

    What a kill or a lost disk left of newer ones is set aside, in `damaged/`, and told. None where
    there is no whole one: training starts over. TensorFlow's own record of checkpoints is mended too.
    """
    for half_written in model_dir.glob("model.ckpt-*_temp"):
        shutil.rmtree(half_written)
    whole = saved(model_dir)
    for step in reversed(tuple(whole)):
        reason = damage(whole[step])
        if reason is None:
            break
        prefix = whole.pop(step)
        _set_aside(prefix)
        next_best = f"goes on from step {max(whole)}" if whole else "starts over"
        tell(f"checkpoint {prefix.name} is damaged ({reason}): training {next_best}")
    _record(model_dir, [*whole.values()])
    return max(whole, default=None)


def set_aside(model_dir: Path) -> list[str]:
    """Return the names of checkpoints that `settle` found damaged, in this process or one before it."""
    return [prefix.name for prefix in saved(model_dir / _SET_ASIDE).values()]


def _set_aside(prefix: Path) -> None:
    folder = prefix.parent / _SET_ASIDE
    folder.mkdir(exist_ok=True)
    for file in prefix.parent.glob(f"{prefix.name}.*"):
        file.replace(folder / file.name)


def _record(model_dir: Path, prefixes: list[Path]) -> None:
    """Make `tf.train.latest_checkpoint` return the last of `prefixes`."""
    if not prefixes:
        (model_dir / "checkpoint").unlink(missing_ok=True)
    else:
        names = [prefix.name for prefix in prefixes]
        tf.compat.v1.train.update_checkpoint_state(str(model_dir), names[-1], names)


def prefix_at(path: Path, place: str) -> Path:
    """Return the checkpoint that `path` means: a prefix, the newest in a model_dir, or a SavedModel's.

    Raises ModelError, beginning with `place`, where it is none of these.
    """
    if Path(f"{path}.index").is_file():
        return path
    if model_versions.is_saved_model(path) and (path / "variables" / "variables.index").is_file():
        return path / "variables" / "variables"
    newest = tf.train.latest_checkpoint(str(path)) if path.is_dir() else None
    if newest is None:
        raise ModelError(
            f"{place}: {path} is no checkpoint", "name a prefix such as model.ckpt-500 (without .index), "
            "a model_dir that holds one, or a SavedModel's folder",
        )  # fmt: skip
    return Path(newest)
