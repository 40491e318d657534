"""Op libraries: shared objects with ops that TensorFlow lacks, loaded once, before the first version.

An op cannot be replaced in a process: a version that was made with another build of a library is refused.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorflow.core.protobuf import saved_model_pb2

from model_server.base import version_settings
from model_server.base.status import Code, StatusError, invalid_argument
from model_server.tensorflow_c import tf_session

VARIABLE = "MODEL_SERVER_OPS"
_DECLARE = f"Name the libraries that have them in {VARIABLE} (server.ops in a pipeline)."
_EXPECTED = 'expected {"ops": {"<file name>": "<SHA-256>"}}'
_NOT_REGISTERED = "Op type not registered"
_loaded: dict[str, str] = {}


def load(paths: str) -> None:
    """Load the libraries whose paths are given, separated by colons. Raises StatusError."""
    for path in filter(None, paths.split(os.pathsep)):
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise invalid_argument(f"{VARIABLE}: {path} cannot be read: {error.strerror}") from None
        try:
            tf_session.load_library(path)
        except StatusError as error:
            raise StatusError(error.code, f"{VARIABLE}: {path} does not load: {error.message}") from None
        _loaded[Path(path).name] = hashlib.sha256(content).hexdigest()


def are_loaded() -> bool:
    """Return whether there are ops of others: their kernels may abort the process on a shape not expected."""
    return bool(_loaded)


def require(directory: Path) -> None:
    """Raise StatusError unless the libraries that the version was made with are loaded, the same builds."""
    stated = version_settings.read(directory).get("ops", {})
    if not isinstance(stated, Mapping):
        raise invalid_argument(f"{directory / version_settings.FILE}: found ops {stated!r}, {_EXPECTED}")
    for name, digest in stated.items():
        if _loaded.get(name) == digest:
            continue
        other = f"another build of it ({_loaded[name][:12]})" if name in _loaded else "no such library"
        raise StatusError(
            Code.FAILED_PRECONDITION,
            f"{directory} was made with the op library {name} (SHA-256 {str(digest)[:12]}), and this server "
            f"has loaded {other}. Start a server with {VARIABLE}=<path of that {name}> (server.ops in a "
            "pipeline).",
        )


def explained(error: StatusError, directory: Path) -> StatusError:
    """Return the error of a load with all ops that are not registered; TensorFlow names the first."""
    if _NOT_REGISTERED not in error.message:
        return error
    try:
        saved_model = saved_model_pb2.SavedModel.FromString((directory / "saved_model.pb").read_bytes())
    except Exception:  # a saved_model.pbtxt, or a file that has gone
        names = ""
    else:
        names = ", ".join(sorted({op for each in saved_model.meta_graphs for op in unknown_ops(each)}))
    return StatusError(error.code, f"{error.message}\nUnknown ops of the graph: {names or '?'}. {_DECLARE}")


def unknown_ops(meta_graph: Any) -> list[str]:
    """Return the ops of a graph and of its functions that are in no loaded library, sorted."""
    library = meta_graph.graph_def.library
    known = {*tf_session.op_definitions(), *(each.signature.name for each in library.function)}
    return sorted({node.op for node in _nodes(meta_graph.graph_def)} - known)


def _nodes(graph: Any) -> Iterator[Any]:
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def
