"""TensorProto to NumPy and back, as C++ does it (tensorflow/core/framework/tensor.cc).

`tf.make_ndarray` and `tf.make_tensor_proto` differ: the first raises where C++ takes the first n of
too many values or decodes strings from tensor_content, the second writes tensor_content, which clients
that read `.float_val` do not see.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from tensorflow.core.framework import tensor_pb2, types_pb2

Array = npt.NDArray[Any]

_MAX_DIMENSIONS = 32  # NumPy's; TensorFlow's is 254
_STRING_BYTES = 32  # a pointer of NumPy's, and a TF_TString
_CONTINUED = 0x80  # the bit that says that a varint goes on
# A shape costs a few bytes on the wire and may ask for any amount of memory: no more than a message may hold.
_MAX_BYTES = 2**31 - 1

NUMPY_TYPES: dict[int, npt.DTypeLike] = {
    types_pb2.DT_FLOAT: np.float32,
    types_pb2.DT_DOUBLE: np.float64,
    types_pb2.DT_INT32: np.int32,
    types_pb2.DT_UINT8: np.uint8,
    types_pb2.DT_INT16: np.int16,
    types_pb2.DT_INT8: np.int8,
    types_pb2.DT_STRING: np.object_,
    types_pb2.DT_COMPLEX64: np.complex64,
    types_pb2.DT_INT64: np.int64,
    types_pb2.DT_BOOL: np.bool_,
    types_pb2.DT_UINT16: np.uint16,
    types_pb2.DT_COMPLEX128: np.complex128,
    types_pb2.DT_HALF: np.float16,
    types_pb2.DT_BFLOAT16: ml_dtypes.bfloat16,
    types_pb2.DT_UINT32: np.uint32,
    types_pb2.DT_UINT64: np.uint64,
}
_FIELDS: dict[int, str] = {
    types_pb2.DT_FLOAT: "float_val",
    types_pb2.DT_DOUBLE: "double_val",
    types_pb2.DT_STRING: "string_val",
    types_pb2.DT_COMPLEX64: "scomplex_val",
    types_pb2.DT_INT64: "int64_val",
    types_pb2.DT_BOOL: "bool_val",
    types_pb2.DT_COMPLEX128: "dcomplex_val",
    types_pb2.DT_HALF: "half_val",
    types_pb2.DT_BFLOAT16: "half_val",
    types_pb2.DT_UINT32: "uint32_val",
    types_pb2.DT_UINT64: "uint64_val",
}  # the other integers: int_val
# What one element of a typed field is, where that is not the tensor's own type.
_PARTS: dict[int, npt.DTypeLike] = {
    types_pb2.DT_COMPLEX64: np.float32,
    types_pb2.DT_COMPLEX128: np.float64,
    types_pb2.DT_HALF: np.uint16,
    types_pb2.DT_BFLOAT16: np.uint16,
}


def type_name(datatype: int) -> str:
    """How C++ writes a type in its messages (DataTypeString): "float", "int32", "string"."""
    return str(types_pb2.DataType.Name(datatype)).removeprefix("DT_").lower()


def to_array(proto: tensor_pb2.TensorProto) -> Array:
    """Return the tensor as an array of its own shape and dtype; strings are bytes objects in an object array.

    Fewer values than elements repeat the last one, none are zeros, and of too many the first count.
    Raises ValueError where C++ Tensor::FromProto returns false.
    """
    dtype, shape = NUMPY_TYPES.get(proto.dtype), _shape(proto)
    if dtype is None:
        raise ValueError(f"no tensors of type {proto.dtype}")
    count = math.prod(shape)
    if count * np.dtype(dtype).itemsize > _MAX_BYTES:
        raise ValueError(f"a tensor of shape {shape} does not fit into a message")
    if count == 0:
        return np.empty(shape, dtype)
    if proto.tensor_content:
        return _from_content(proto, dtype, count).reshape(shape)
    return _repeated(_from_field(proto, dtype, count), count).reshape(shape)


def filled_bytes(proto: tensor_pb2.TensorProto) -> int:
    """Return what the tensor takes in memory if values are repeated to fill its shape, else 0."""
    dtype, shape = NUMPY_TYPES.get(proto.dtype), _shape(proto)
    count = math.prod(shape)
    if dtype is None or proto.tensor_content or count <= len(_field(proto)) // _parts(proto.dtype):
        return 0
    return count * (_STRING_BYTES if proto.dtype == types_pb2.DT_STRING else np.dtype(dtype).itemsize)


def _parts(datatype: int) -> int:
    """Return how many elements of the typed field make one of the tensor."""
    return 2 if datatype in (types_pb2.DT_COMPLEX64, types_pb2.DT_COMPLEX128) else 1


def to_proto(array: Array, datatype: int) -> tensor_pb2.TensorProto:
    """Return the array in the typed field of `datatype`, one value an element, as Tensor::AsProtoField."""
    proto = tensor_pb2.TensorProto(dtype=datatype)
    proto.tensor_shape.SetInParent()  # a scalar has a shape too
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    proto.MergeFrom(to_values(array, datatype))
    return proto


def to_values(array: Array, datatype: int) -> tensor_pb2.TensorProto:
    """Return the typed field alone: no dtype, no shape."""
    values = array.reshape(-1)
    if datatype in _PARTS:
        values = np.ascontiguousarray(values).view(_PARTS[datatype])
    proto = tensor_pb2.TensorProto()
    getattr(proto, _FIELDS.get(datatype, "int_val")).extend(values.tolist())
    return proto


def is_possible(shape: tuple[int, ...]) -> bool:
    """Return whether NumPy can make an array of this shape: it multiplies even the sizes beside a 0."""
    if len(shape) > _MAX_DIMENSIONS or any(size < 0 for size in shape):
        return False
    return math.prod(filter(None, shape)) <= _MAX_BYTES


def _shape(proto: tensor_pb2.TensorProto) -> tuple[int, ...]:
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if not is_possible(shape):
        raise ValueError(f"not a shape: {shape}")
    return shape


def _field(proto: tensor_pb2.TensorProto) -> Any:
    return getattr(proto, _FIELDS.get(proto.dtype, "int_val"))


def _from_content(proto: tensor_pb2.TensorProto, dtype: npt.DTypeLike, count: int) -> Array:
    if proto.dtype == types_pb2.DT_STRING:
        return _string_list(proto.tensor_content, count)
    if len(proto.tensor_content) != count * np.dtype(dtype).itemsize:
        raise ValueError(f"tensor_content has {len(proto.tensor_content)} bytes for {count} elements")
    return np.frombuffer(proto.tensor_content, dtype)


def _from_field(proto: tensor_pb2.TensorProto, dtype: npt.DTypeLike, count: int) -> Array:
    values = _field(proto)
    if proto.dtype not in _PARTS:
        wide = np.int32 if proto.dtype not in _FIELDS else dtype
        # int_val is wider than int8 and its like; C++ casts, which wraps around.
        return np.fromiter(values[:count], wide, min(count, len(values))).astype(dtype, copy=False)
    parts = np.dtype(dtype).itemsize // np.dtype(_PARTS[proto.dtype]).itemsize
    used = min(count, len(values) // parts) * parts
    wide = np.int32 if parts == 1 else _PARTS[proto.dtype]
    return np.fromiter(values[:used], wide, used).astype(_PARTS[proto.dtype]).view(dtype)


def _repeated(values: Array, count: int) -> Array:
    if len(values) == count:
        return values
    full = np.zeros(count, values.dtype)
    if values.dtype == np.object_:
        full[:] = b""
    if len(values):
        full[: len(values)] = values
        full[len(values) :] = values[-1]
    return full


def _string_list(content: bytes, count: int) -> Array:
    """Strings as port::DecodeStringList reads them: `count` varint lengths, then all the bytes."""
    if count > len(content):
        raise ValueError(f"tensor_content has {len(content)} bytes for {count} strings")
    lengths, position = [], 0
    for _ in range(count):
        length, position = _varint32(content, position)
        lengths.append(length)
    if position + sum(lengths) != len(content):
        raise ValueError("tensor_content does not end with its last string")
    strings = np.empty(count, np.object_)
    for index, length in enumerate(lengths):
        strings[index] = content[position : position + length]
        position += length
    return strings


def _varint32(content: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 35, 7):
        if position >= len(content):
            break
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < _CONTINUED:
            return value & 0xFFFFFFFF, position
    raise ValueError("tensor_content holds an unfinished length")
