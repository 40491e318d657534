"""A SavedModel loaded by TensorFlow's C++ loader, and runs of its graph."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import c_char_p, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from tensorflow.core.framework import op_def_pb2
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2

from model_server.base.status import Code, StatusError, invalid_argument
from model_server.tensorflow_c import tf_tensors
from model_server.tensorflow_c.tensors import Array
from model_server.tensorflow_c.tf_library import Input, Output, library
from model_server.tensorflow_c.tf_tensors import Strings

T = TypeVar("T")

# These read a string and keep nothing of it.
_PARSING_OPS = frozenset({b"ParseExample", b"ParseExampleV2"})


class Endpoints:
    """Tensors of a graph, as the C API takes them: prepared once, used in each run."""

    def __init__(self, outputs: Sequence[Any]) -> None:
        self.count = len(outputs)
        self.array = (Output * self.count)(*outputs)


class RunOptions:
    """Options of a run as the C API takes them; `inline` runs all ops in the calling thread.

    An inline run needs no hand-over between threads, which is most of what a small graph costs, and cannot
    be interrupted: it takes no timeout.
    """

    def __init__(self, *, timeout_milliseconds: int = 0, inline: bool = False) -> None:
        options = config_pb2.RunOptions(timeout_in_ms=timeout_milliseconds)
        if inline:
            options.inter_op_thread_pool = -1
        serialized = options.SerializeToString()
        self.buffer = library().TF_NewBufferFromString(serialized, len(serialized))

    def __del__(self) -> None:
        library().TF_DeleteBuffer(self.buffer)


class Session:
    """A loaded SavedModel; `meta_graph` is the MetaGraphDef that was chosen by its tags."""

    def __init__(self, directory: Path, tags: Sequence[str], config: config_pb2.ConfigProto) -> None:
        """Load with variables, assets and init ops. Raises StatusError in TensorFlow's own words."""
        tf = library()
        self._graph = tf.TF_NewGraph()
        self._session: int | None = None
        self._outputs: dict[str, Any] = {}
        meta_graph = tf.TF_NewBuffer()
        options = tf.TF_NewSessionOptions()
        names = (c_char_p * len(tags))(*(tag.encode() for tag in tags))
        path = str(directory).encode()
        serialized = config.SerializeToString()
        try:
            with _checked() as status:
                tf.TF_SetConfig(options, serialized, len(serialized), status)
            with _checked() as status:
                self._session = tf.TF_LoadSessionFromSavedModel(
                    options, None, path, names, len(tags), self._graph, meta_graph, status
                )
            content = ctypes.string_at(meta_graph.contents.data, meta_graph.contents.length)
            self.meta_graph = meta_graph_pb2.MetaGraphDef.FromString(content)
        except BaseException:
            self.close()
            raise
        finally:
            tf.TF_DeleteSessionOptions(options)
            tf.TF_DeleteBuffer(meta_graph)

    def close(self) -> None:
        """Give back the memory; nothing may run any more."""
        tf = library()
        session, self._session = self._session, None
        graph, self._graph = self._graph, None
        if session:
            with _checked() as status:
                tf.TF_CloseSession(session, status)
            with _checked() as status:
                tf.TF_DeleteSession(session, status)
        if graph:
            tf.TF_DeleteGraph(graph)

    def endpoints(self, names: Sequence[str]) -> Endpoints:
        """Return tensors by their names ("x:0"). Raises StatusError for one that is not there."""
        return Endpoints([self._output(name) for name in names])

    def datatype(self, name: str) -> int:
        """Return the DataType of a tensor by its name."""
        return int(library().TF_OperationOutputType(self._output(name)))

    def is_only_parsed(self, name: str) -> bool:
        """Whether a tensor goes into ops only that parse tf.Examples, and keep no part of their input."""
        tf = library()
        output = self._output(name)
        count = tf.TF_OperationOutputNumConsumers(output)
        consumers = (Input * count)()
        tf.TF_OperationOutputConsumers(output, consumers, count)
        return all(tf.TF_OperationOpType(each.operation) in _PARSING_OPS for each in consumers)

    def run(
        self,
        feeds: Endpoints,
        values: Sequence[Array | Strings],
        fetches: Endpoints,
        options: RunOptions | None,
    ) -> list[Array]:
        """Return the fetched tensors' values. Raises StatusError with TensorFlow's code and raw text."""
        return self.run_to(tf_tensors.to_array, feeds, values, fetches, options)

    def run_to(
        self,
        form: Callable[[int], T],
        feeds: Endpoints,
        values: Sequence[Array | Strings],
        fetches: Endpoints,
        options: RunOptions | None,
    ) -> list[T]:
        """Do as run(), with each TF_Tensor that comes out given to `form`."""
        tf = library()
        given = (c_void_p * feeds.count)()
        answered = (c_void_p * fetches.count)()
        try:
            for index, value in enumerate(values):
                given[index] = tf_tensors.new_tensor(value)
            with _checked() as status:
                tf.TF_SessionRun(
                    self._session, options.buffer if options else None, feeds.array, given, feeds.count,
                    fetches.array, answered, fetches.count, None, 0, None, status,
                )  # fmt: skip
            return [form(tensor or 0) for tensor in answered]
        finally:
            for tensor in (*given, *answered):
                if tensor:
                    tf.TF_DeleteTensor(tensor)

    def _output(self, name: str) -> Any:
        output = self._outputs.get(name)
        if output is None:
            output = self._outputs[name] = self._look_up(name)
        return output

    def _look_up(self, name: str) -> Any:
        operation_name, _, index = name.partition(":")
        tf = library()
        operation = tf.TF_GraphOperationByName(self._graph, operation_name.encode())
        number = int(index) if index.isdecimal() else 0
        if not operation or number >= tf.TF_OperationNumOutputs(operation):
            raise invalid_argument(
                f"Tensor {name}, specified in either feed_devices or fetch_devices was not found in the Graph"
            )
        return Output(operation, number)


def load_library(path: str) -> None:
    """Register the ops and kernels of a shared object, until the process ends. Raises StatusError."""
    with _checked() as status:
        library().TF_LoadLibrary(path.encode(), status)


@cache
def op_definitions() -> Mapping[str, op_def_pb2.OpDef]:
    """Return the ops that TensorFlow has, by name."""
    buffer = library().TF_GetAllOpList()
    try:
        content = ctypes.string_at(buffer.contents.data, buffer.contents.length)
    finally:
        library().TF_DeleteBuffer(buffer)
    return {op.name: op for op in op_def_pb2.OpList.FromString(content).op}


def start_thread_pools(config: config_pb2.ConfigProto) -> None:
    """Start the thread pools that all sessions share, as the first session would. Raises StatusError."""
    tf = library()
    graph, options = tf.TF_NewGraph(), tf.TF_NewSessionOptions()
    serialized = config.SerializeToString()
    try:
        with _checked() as status:
            tf.TF_SetConfig(options, serialized, len(serialized), status)
        with _checked() as status:
            session = tf.TF_NewSession(graph, options, status)
        with _checked() as status:
            tf.TF_DeleteSession(session, status)
    finally:
        tf.TF_DeleteSessionOptions(options)
        tf.TF_DeleteGraph(graph)


@contextmanager
def _checked() -> Iterator[int]:
    """Yield a TF_Status; raise StatusError afterwards unless it is OK."""
    tf = library()
    status = tf.TF_NewStatus()
    try:
        yield status
        code = tf.TF_GetCode(status)
        if code:
            raise StatusError(Code(code), tf.TF_Message(status).decode("utf-8", "backslashreplace"))
    finally:
        tf.TF_DeleteStatus(status)
