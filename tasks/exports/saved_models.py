"""SavedModels as they are on disk: their signatures, read from the protocol buffer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tensorflow as tf
from tensorflow.python.saved_model import loader_impl

from tasks.core.artifacts import Signature

SERVE = tf.saved_model.SERVING
_OWN = "__saved_model_"  # init and train ops are kept as signatures of such names


def signatures(folder: Path, raw: Sequence[str]) -> tuple[Signature, ...]:
    """Return the SignatureDefs of the MetaGraph that is tagged `serve`, by name.

    `raw` holds the names of those that take feature tensors.
    """
    found = serving_signature_defs(folder)
    return tuple(
        signature(name, definition, "raw" if name in raw else "parsing")
        for name, definition in sorted(found.items())
    )


def signature(name: str, definition: Any, receiver: Literal["parsing", "raw"]) -> Signature:
    """Return a SignatureDef as an artifact."""
    method = definition.method_name.rpartition("/")[2]
    return Signature(name, method, _infos(definition.inputs), _infos(definition.outputs), receiver)


def serving_signature_defs(folder: Path) -> dict[str, Any]:
    """Return name to SignatureDef of the MetaGraph that is tagged `serve`."""
    for graph in loader_impl.parse_saved_model(str(folder)).meta_graphs:
        if list(graph.meta_info_def.tags) == [SERVE]:
            return {name: value for name, value in graph.signature_def.items() if not name.startswith(_OWN)}
    return {}


def tag_sets(folder: Path) -> tuple[str, ...]:
    """Return the tags of each MetaGraph, joined by commas as saved_model_cli does; `serve` first."""
    graphs = loader_impl.parse_saved_model(str(folder)).meta_graphs
    found = {",".join(sorted(graph.meta_info_def.tags, key=lambda tag: tag != SERVE)) for graph in graphs}
    return tuple(sorted(found, key=lambda tags: (tags != SERVE, tags)))


def assets(folder: Path) -> tuple[str, ...]:
    """Return the names of the assets: files that the graph reads when it is loaded."""
    return tuple(sorted(path.name for path in (folder / "assets").glob("*")))


def _infos(infos: Mapping[str, Any]) -> dict[str, str]:
    return {alias: form(info) for alias, info in sorted(infos.items())}


def form(info: Any) -> str:
    """Render a TensorInfo as `float32[?,10]`; a shape of unknown rank as `[...]`."""
    sizes = ["?" if dim.size < 0 else str(dim.size) for dim in info.tensor_shape.dim]
    shape = "..." if info.tensor_shape.unknown_rank else ",".join(sizes)
    return f"{tf.as_dtype(info.dtype).name}[{shape}]"


def is_batched(info: Any) -> bool:
    """Return whether the first dimension of a tensor counts examples: it is not fixed."""
    shape = info.tensor_shape
    return bool(shape.unknown_rank or (shape.dim and shape.dim[0].size < 0))
