"""One loaded version of a model: its graph in a session, and its signatures."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from model_server.base.flags import Options
from model_server.base.session_config import session_config
from model_server.base.status import Code, StatusError
from model_server.models.version_directories import has_saved_model
from model_server.observability.request_facts import FACTS
from model_server.rows import row_independence
from model_server.tensorflow_c import graph_loops, op_libraries
from model_server.tensorflow_c.tensors import Array
from model_server.tensorflow_c.tf_session import RunOptions, Session, op_definitions

_LONGEST_TIMEOUT_SECONDS = 2**31 / 1000


@dataclass
class Servable:
    """A version ready to be asked. `signatures` are those of the SavedModel, by key."""

    version: int
    signatures: Mapping[str, meta_graph_pb2.SignatureDef]
    session: Session
    dependences: Mapping[str, str] = field(default_factory=dict)
    """By signature, why its rows may depend on one another; "" if they are known to be independent."""
    with_loops: frozenset[str] = frozenset()
    """The signatures for which the values of a request may decide how long a run takes."""
    batched: Callable[[Mapping[str, Array], Sequence[str], float | None], list[Array]] | None = None
    """What runs in the place of run_now(), where callers share runs."""

    def run(
        self, feeds: Mapping[str, Array], fetches: Sequence[str], timeout_seconds: float | None
    ) -> list[Array]:
        """Return the fetched tensors' values, in order; tensors are named as in TensorInfo.name ("x:0").

        Raises StatusError with TensorFlow's codes and raw texts, among them DEADLINE_EXCEEDED.
        """
        started = time.perf_counter_ns()
        values = (self.batched or self.run_now)(feeds, fetches, timeout_seconds)
        FACTS.run_ns = time.perf_counter_ns() - started
        return values

    def run_now(
        self, feeds: Mapping[str, Array], fetches: Sequence[str], timeout_seconds: float | None
    ) -> list[Array]:
        """Do as run(), alone and at once."""
        return self.session.run(
            self.session.endpoints(tuple(feeds)),
            tuple(feeds.values()),
            self.session.endpoints(fetches),
            _run_options(timeout_seconds),
        )

    def datatype(self, tensor_name: str) -> int:
        """Return the DataType of a tensor of the graph."""
        return self.session.datatype(tensor_name)

    def close(self) -> None:
        """Give back the session's memory; nothing may run in it any more."""
        self.session.close()
        _trim_heap()


def load(directory: Path, version: int, options: Options) -> Servable:
    """Load a SavedModel with its variables, assets and init ops.

    A version without its variables is refused here, where the official server loads it and then fails
    every request. Raises StatusError in TensorFlow's words; then nothing stays in memory.
    """
    if not has_saved_model(directory):
        raise StatusError(
            Code.NOT_FOUND,
            "Specified file path does not appear to contain a SavedModel bundle (should have a file called "
            f"`saved_model.pb`)\nSpecified file path: {directory}",
        )
    session = _opened(directory, options)
    try:
        _require_variables(directory, session.meta_graph)
        signatures = {key: _copy(each) for key, each in session.meta_graph.signature_def.items()}
        dependences = row_independence.of_version(directory, session.meta_graph, op_definitions())
        with_loops = graph_loops.signatures_with_loops(session.meta_graph)
        del session.meta_graph
    except BaseException:
        session.close()
        raise
    return Servable(version, signatures, session, dependences, with_loops)


def _opened(directory: Path, options: Options) -> Session:
    try:
        return Session(directory, options.saved_model_tags.split(","), session_config(options))
    except StatusError as error:
        # Of a file cut off, TensorFlow says only that it read less bytes than requested.
        if error.code is Code.OUT_OF_RANGE and not _is_readable(directory / "saved_model.pb"):
            raise StatusError(
                Code.DATA_LOSS, f"Can't parse {directory}/saved_model.pb as binary proto"
            ) from error
        raise op_libraries.explained(error, directory) from error


def _is_readable(file: Path) -> bool:
    try:
        saved_model_pb2.SavedModel.FromString(file.read_bytes())
    except (OSError, DecodeError):
        return False
    return True


def _require_variables(directory: Path, meta_graph: meta_graph_pb2.MetaGraphDef) -> None:
    index = directory / "variables" / "variables.index"
    if meta_graph.saver_def.restore_op_name and not index.is_file():
        raise StatusError(Code.NOT_FOUND, f"The SavedModel's variables are missing: no file {index}")


def _copy(signature: meta_graph_pb2.SignatureDef) -> meta_graph_pb2.SignatureDef:
    """Return a copy that does not keep the whole MetaGraphDef, weights in constants included, in memory."""
    copied = meta_graph_pb2.SignatureDef()
    copied.CopyFrom(signature)
    return copied


def _run_options(timeout_seconds: float | None) -> RunOptions | None:
    if timeout_seconds is None or timeout_seconds > _LONGEST_TIMEOUT_SECONDS:
        return None
    # 0 would mean "no timeout".
    return RunOptions(timeout_milliseconds=max(1, math.ceil(timeout_seconds * 1000)))


def _trim_heap() -> None:
    """Give freed memory back to the system, which glibc otherwise keeps for this process."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:  # another C library
        pass
