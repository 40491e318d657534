"""The server's parts that need no server: flags, tensors, channel arguments."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow.core.framework import tensor_pb2, types_pb2

from model_server.api.grpc.grpc_server import channel_arguments
from model_server.base import flags
from model_server.base.status import StatusError
from model_server.tensorflow_c.tensors import NUMPY_TYPES, to_array, to_proto


def options(*arguments: str, **environment: str) -> flags.Options:
    return flags.parse(arguments, environment).options


def test_flags_have_the_official_defaults() -> None:
    """Those that a pipeline may leave out."""
    parsed = options()
    assert (parsed.port, parsed.rest_api_port, parsed.model_name) == (8500, 0, "default")
    assert (parsed.max_num_load_retries, parsed.load_retry_interval_micros) == (5, 60_000_000)
    assert (parsed.file_system_poll_wait_seconds, parsed.saved_model_tags) == (1, "serve")
    assert len(flags.FLAGS) == 46


def test_the_last_of_repeated_flags_counts() -> None:
    """So that arguments of `docker run` override those of the image."""
    assert options("--port=1", "--port=2").port == 2


@pytest.mark.parametrize(
    ("argument", "value"),
    [("--version", True), ("--version=true", True), ("--version=false", False)],
)
def test_forms_of_a_bool(argument: str, value: bool) -> None:
    """Bare, true and false, and nothing else."""
    assert options(argument).version is value


@pytest.mark.parametrize("argument", ["--version=1", "--version=yes", "--port=", "--port=1.5", "--port=x"])
def test_bad_values_are_told_apart(argument: str) -> None:
    """They are not unknown arguments: the server prints its usage and ends."""
    parsed = flags.parse([argument], {})
    assert parsed.invalid == (argument,)
    assert parsed.unknown == ()


@pytest.mark.parametrize("argument", ["--nope", "--nope=1", "-port=1", "--port", "port=1", "8500", "--help"])
def test_unknown_arguments(argument: str) -> None:
    """A value after a space is one, and so is a single dash."""
    parsed = flags.parse([argument], {})
    assert parsed.unknown == (argument,)
    assert parsed.wants_help is (argument == "--help")


def test_flags_not_supported_may_have_their_defaults() -> None:
    """Any other value is reported by name."""
    same = flags.parse(["--use_alts_credentials=false", "--enable_model_warmup", "--ssl_config_file="], {})
    other = flags.parse(["--prefer_tflite_model", "--use_alts_credentials"], {})
    assert same.unsupported == ()
    assert other.unsupported == ("use_alts_credentials", "prefer_tflite_model")


def test_the_environment_of_the_image_gives_defaults() -> None:
    """MODEL_NAME and MODEL_BASE_PATH, as in the official image's entrypoint; flags win."""
    environment = {"MODEL_NAME": "m", "MODEL_BASE_PATH": "/models"}
    assert options(**environment).model_base_path == "/models/m"
    assert options("--model_name=n", **environment).model_name == "n"
    assert options("--model_base_path=/x", **environment).model_base_path == "/x"


def test_options_that_cannot_start_a_server_are_refused() -> None:
    """A server needs a gRPC address and a model."""
    with pytest.raises(StatusError, match=r"grpc_port or server_options.grpc_socket_path"):
        flags.check(options("--port=0", "--model_base_path=/x"))
    with pytest.raises(StatusError, match=r"model_base_path and server_options.model_config_file are empty"):
        flags.check(options())
    flags.check(options("--port=0", "--grpc_socket_path=/s", "--model_base_path=/x"))


def test_channel_arguments_are_ints_where_they_read_as_such() -> None:
    """Else strings."""
    assert channel_arguments("") == []
    assert channel_arguments("a.b=1,c=x,d=") == [("a.b", 1), ("c", "x"), ("d", "")]


NUMERIC = sorted(set(NUMPY_TYPES) - {types_pb2.DT_STRING, types_pb2.DT_BFLOAT16})


@st.composite
def arrays(draw: st.DrawFn) -> tuple[int, Any]:
    datatype = draw(st.sampled_from(NUMERIC))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    return datatype, draw(hnp.arrays(NUMPY_TYPES[datatype], shape))


@given(arrays())
def test_arrays_survive_typed_fields_and_content(drawn: tuple[int, Any]) -> None:
    """Every bit, through the field of the type as well as through tensor_content."""
    datatype, array = drawn
    proto = to_proto(array, datatype)
    assert proto.tensor_content == b""
    content = tensor_pb2.TensorProto(
        dtype=datatype, tensor_shape=proto.tensor_shape, tensor_content=array.tobytes()
    )
    for sent in (tensor_pb2.TensorProto.FromString(proto.SerializeToString()), content):
        received = to_array(sent)
        assert received.dtype == array.dtype
        assert received.shape == array.shape
        np.testing.assert_array_equal(received, array)


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_strings_survive_typed_fields_and_content(strings: list[bytes]) -> None:
    """Content is all lengths as varints, then all bytes."""
    array = np.empty(len(strings), np.object_)
    array[:] = strings
    proto = to_proto(array, types_pb2.DT_STRING)
    assert list(proto.string_val) == strings
    assert to_array(proto).tolist() == strings
    del proto.string_val[:]
    lengths = [bytes([len(s)]) if len(s) < 128 else bytes([len(s) & 127 | 128, len(s) >> 7]) for s in strings]
    proto.tensor_content = b"".join([*lengths, *strings])
    assert to_array(proto).tolist() == strings


def proto_of(datatype: int, shape: list[int], **fields: Any) -> tensor_pb2.TensorProto:
    made = tensor_pb2.TensorProto(dtype=datatype, **fields)
    for size in shape:
        made.tensor_shape.dim.add(size=size)
    return made


@pytest.mark.parametrize(
    ("proto", "values"),
    [
        (proto_of(types_pb2.DT_FLOAT, [3], float_val=[1, 2]), [1, 2, 2]),
        (proto_of(types_pb2.DT_FLOAT, [3]), [0, 0, 0]),
        (proto_of(types_pb2.DT_FLOAT, [2], float_val=[1, 2, 3]), [1, 2]),
        (proto_of(types_pb2.DT_STRING, [2]), [b"", b""]),
        (proto_of(types_pb2.DT_STRING, [2], string_val=[b"a"]), [b"a", b"a"]),
        (proto_of(types_pb2.DT_INT8, [2], int_val=[257, -129]), [1, 127]),
        (proto_of(types_pb2.DT_HALF, [2], half_val=[0x3C00]), [1, 1]),
        (proto_of(types_pb2.DT_BFLOAT16, [1], half_val=[0x3F80]), [1]),
        (proto_of(types_pb2.DT_COMPLEX64, [2], scomplex_val=[1, 2, 3]), [1 + 2j, 1 + 2j]),
        (proto_of(types_pb2.DT_FLOAT, [0, 5], float_val=[1]), []),
        (proto_of(types_pb2.DT_FLOAT, [0], tensor_content=b"abc"), []),
    ],
)
def test_values_are_counted_as_in_cpp(proto: tensor_pb2.TensorProto, values: list[Any]) -> None:
    """Too few repeat the last, none are zeros, of too many the first count, wide integers wrap."""
    assert to_array(proto).reshape(-1).tolist() == values


@pytest.mark.parametrize(
    "proto",
    [
        proto_of(types_pb2.DT_INVALID, [1], float_val=[1]),
        proto_of(types_pb2.DT_RESOURCE, [1]),
        proto_of(types_pb2.DT_FLOAT, [-1], float_val=[1]),
        proto_of(types_pb2.DT_FLOAT, [2**62, 2**62], float_val=[1]),
        proto_of(types_pb2.DT_FLOAT, [1] * 300, float_val=[1]),
        proto_of(types_pb2.DT_FLOAT, [2], tensor_content=b"1234567"),
        proto_of(types_pb2.DT_STRING, [2], tensor_content=b"\x01\x01a"),
        proto_of(types_pb2.DT_STRING, [1], tensor_content=b"\x01ab"),
        proto_of(types_pb2.DT_STRING, [1], tensor_content=b"\xff\xff\xff\xff\xff\xff"),
        proto_of(types_pb2.DT_STRING, [2**40], tensor_content=b"\x01a"),
    ],
)
def test_tensors_that_are_none_are_refused(proto: tensor_pb2.TensorProto) -> None:
    """Where C++ says "tensor parsing error", and where a shape asks for more memory than a message has."""
    with pytest.raises(ValueError, match=r"."):
        to_array(proto)


@given(st.binary(max_size=200))
def test_no_bytes_make_a_tensor_that_crashes(data: bytes) -> None:
    """A proto is an array of its own size, or a ValueError."""
    proto = tensor_pb2.TensorProto()
    try:
        proto.ParseFromString(data)
    except Exception:
        return
    try:
        array = to_array(proto)
    except ValueError:
        return
    assert array.size == math.prod(dim.size for dim in proto.tensor_shape.dim)


def test_the_server_starts_without_tensorflows_python() -> None:
    """Only a trace, a warmup file and a request log need some of it, and import it themselves."""
    program = (
        "import sys; from model_server.tensorflow_c import runtime; runtime.import_tensorflow(); "
        "import model_server.processes.server, model_server.processes.worker; "
        "print([name for name in sys.modules if name.startswith('tensorflow.python')])"
    )
    started = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert started.stdout == "[]\n"
