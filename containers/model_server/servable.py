"""One loaded version of a model: a session with a graph of its own, and its signatures."""

from __future__ import annotations

import ctypes
import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow.python.client import pywrap_tf_session, session
from tensorflow.python.framework import ops
from tensorflow.python.platform import tf_logging
from tensorflow.python.saved_model import loader_impl

from model_server.flags import Options
from model_server.status import Code, StatusError, invalid_argument
from model_server.tensors import Array
from model_server.version_directories import has_saved_model

# What loading reads of a MetaGraphDef's collections; the others only cost time and memory.
_LOADER_COLLECTIONS = frozenset(
    {"saved_model_main_op", "legacy_init_op", "saved_model_assets", "asset_filepaths", "table_initializer"}
)
_LONGEST_TIMEOUT_SECONDS = 2**31 / 1000


@dataclass
class Servable:
    """A version ready to be asked. `signatures` are those of the SavedModel, by key."""

    version: int
    signatures: Mapping[str, meta_graph_pb2.SignatureDef]
    _session: Any
    _endpoints: dict[str, Any] = field(default_factory=dict)

    def run(
        self, feeds: Mapping[str, Array], fetches: Sequence[str], timeout_seconds: float | None
    ) -> list[Array]:
        """Return the fetched tensors' values, in order; tensors are named as in TensorInfo.name ("x:0").

        Raises TensorFlow's own errors with their raw texts, among them DEADLINE_EXCEEDED.
        """
        # Session.run would convert wrong dtypes, refuse shapes that the ops accept, and rewrite messages.
        with _run_options(timeout_seconds) as options:
            values = self._session._call_tf_sessionrun(
                options,
                {self._endpoint(name): value for name, value in feeds.items()},
                [self._endpoint(name) for name in fetches],
                [],
                None,
            )
        return [value if isinstance(value, np.ndarray) else _scalar(value) for value in values]

    def datatype(self, tensor_name: str) -> int:
        """Return the DataType of a tensor of the graph."""
        self._endpoint(tensor_name)
        return int(self._session.graph.get_tensor_by_name(tensor_name).dtype.as_datatype_enum)

    def close(self) -> None:
        """Give back the session's memory; nothing may run in it any more."""
        self._session.close()
        del self._session
        self._endpoints.clear()
        gc.collect()  # a Python graph is full of reference cycles
        _trim_heap()

    def _endpoint(self, name: str) -> Any:
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            try:
                endpoint = self._session.graph.get_tensor_by_name(name)._as_tf_output()
            except (KeyError, ValueError):
                raise invalid_argument(
                    f"Tensor {name}, specified in either feed_devices or fetch_devices was not found "
                    "in the Graph"
                ) from None
            self._endpoints[name] = endpoint
        return endpoint


def load(directory: Path, version: int, options: Options) -> Servable:
    """Load a SavedModel with its variables, assets and init ops.

    A version without its variables is refused here, where the official server loads it and then fails
    every request. Raises StatusError or TensorFlow's own errors; then nothing stays in memory.
    """
    tf_logging.set_verbosity(tf_logging.ERROR)
    if not has_saved_model(directory):
        raise StatusError(
            Code.NOT_FOUND,
            "Specified file path does not appear to contain a SavedModel bundle (should have a file called "
            f"`saved_model.pb`)\nSpecified file path: {directory}",
        )
    graph = ops.Graph()
    opened = session.Session(graph=graph, config=_session_config(options))
    try:
        signatures = _load_into(opened, directory, set(options.saved_model_tags.split(",")))
    except BaseException:
        opened.close()
        raise
    return Servable(version, signatures, opened)


def _load_into(opened: Any, directory: Path, tags: set[str]) -> dict[str, meta_graph_pb2.SignatureDef]:
    try:
        loader = loader_impl.SavedModelLoader(str(directory))
    except OSError as error:  # parse_saved_model says so of bytes that are no SavedModel
        raise StatusError(
            Code.DATA_LOSS, f"Can't parse {directory}/saved_model.pb as binary proto"
        ) from error
    try:
        meta_graph = loader.get_meta_graph_def_from_tags(tags)
    except RuntimeError:
        raise StatusError(
            Code.NOT_FOUND,
            f"Could not find meta graph def matching supplied tags: {{ {' '.join(sorted(tags))} }}. "
            "To inspect available tag-sets in the SavedModel, please use the SavedModel CLI: "
            "`saved_model_cli`",
        ) from None
    for name in set(meta_graph.collection_def) - _LOADER_COLLECTIONS:
        del meta_graph.collection_def[name]
    _require_variables(loader, meta_graph)
    loader.load(opened, tags)
    return {key: _copy(signature) for key, signature in meta_graph.signature_def.items()}


def _require_variables(loader: Any, meta_graph: meta_graph_pb2.MetaGraphDef) -> None:
    index = Path(f"{loader.variables_path}.index")
    if meta_graph.saver_def.restore_op_name and not index.is_file():
        raise StatusError(Code.NOT_FOUND, f"The SavedModel's variables are missing: no file {index}")


def _copy(signature: meta_graph_pb2.SignatureDef) -> meta_graph_pb2.SignatureDef:
    """Return a copy that does not keep the whole MetaGraphDef, weights in constants included, in memory."""
    copied = meta_graph_pb2.SignatureDef()
    copied.CopyFrom(signature)
    return copied


def _session_config(options: Options) -> config_pb2.ConfigProto:
    both = options.tensorflow_session_parallelism
    return config_pb2.ConfigProto(
        intra_op_parallelism_threads=options.tensorflow_intra_op_parallelism or both,
        inter_op_parallelism_threads=options.tensorflow_inter_op_parallelism or both,
        allow_soft_placement=True,
        gpu_options=config_pb2.GPUOptions(allow_growth=True),
    )


@contextmanager
def _run_options(timeout_seconds: float | None) -> Iterator[Any]:
    if timeout_seconds is None or timeout_seconds > _LONGEST_TIMEOUT_SECONDS:
        yield None
        return
    # 0 would mean "no timeout".
    milliseconds = max(1, math.ceil(timeout_seconds * 1000))
    serialized = config_pb2.RunOptions(timeout_in_ms=milliseconds).SerializeToString()
    buffer = pywrap_tf_session.TF_NewBufferFromString(serialized)
    try:
        yield buffer
    finally:
        pywrap_tf_session.TF_DeleteBuffer(buffer)


def _scalar(value: Any) -> Array:
    """Return a value that TF_SessionRun gave as a Python or NumPy scalar, as an array without dimensions."""
    return np.array(value, np.object_ if isinstance(value, bytes) else None)


def _trim_heap() -> None:
    """Give freed memory back to the system, which glibc otherwise keeps for this process."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:  # another C library
        pass
