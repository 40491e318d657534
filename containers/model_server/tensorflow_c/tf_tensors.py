"""NumPy arrays to tensors of TensorFlow's C API, and back."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_char_p, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from tensorflow.core.framework import types_pb2

from model_server.tensorflow_c.tensors import NUMPY_TYPES, Array
from model_server.tensorflow_c.tf_library import STRING_BYTES, Deallocator, library

_DATATYPES = {np.dtype(dtype): datatype for datatype, dtype in NUMPY_TYPES.items()}
_TYPE_BITS, _SMALL, _VIEW = 3, 0, 3  # TF_TString_Type, in the lowest bits of the first byte
_owned_strings: dict[int, Any] = {}


class Strings:
    """A vector of byte strings, given to a graph without a copy.

    For feeds that only parsing ops read: an op that kept one of them after the run would see freed memory.
    """

    def __init__(self, values: Sequence[bytes]) -> None:
        self.values = values


def new_tensor(value: Array | Strings) -> int:
    """Return a TF_Tensor with the array's values, to be deleted by the caller.

    The bytes of `Strings` must outlive the tensor.
    """
    if isinstance(value, Strings):
        return _views(value.values)
    if value.dtype == np.object_:
        return _owned(value)
    contiguous = np.ascontiguousarray(value)
    dims = (c_int64 * value.ndim)(*value.shape)
    tensor = library().TF_AllocateTensor(_DATATYPES[value.dtype], dims, value.ndim, contiguous.nbytes)
    if contiguous.nbytes:
        ctypes.memmove(library().TF_TensorData(tensor), contiguous.ctypes.data, contiguous.nbytes)
    return int(tensor)


@dataclass(frozen=True)
class Raw:
    """A tensor's values as they are in memory: `size` bytes an element, row by row."""

    datatype: int
    shape: tuple[int, ...]
    content: bytes
    size: int


def to_raw(tensor: int) -> Raw:
    """Return a TF_Tensor's values as bytes that need the tensor no more.

    Strings are TF_TStrings that hold their bytes themselves, of up to 22. Raises ValueError where one is
    longer, or the layout is not known.
    """
    tf = library()
    shape = tuple(tf.TF_Dim(tensor, index) for index in range(tf.TF_NumDims(tensor)))
    datatype, length = tf.TF_TensorType(tensor), tf.TF_TensorByteSize(tensor)
    content = ctypes.string_at(tf.TF_TensorData(tensor), length) if length else b""
    if datatype != types_pb2.DT_STRING:
        return Raw(datatype, shape, content, np.dtype(NUMPY_TYPES[datatype]).itemsize)
    kinds = np.frombuffer(content, np.uint8)[::STRING_BYTES] & _TYPE_BITS
    if kinds.any() or not strings_are_as_known():
        raise ValueError("strings that are not held in place")
    return Raw(datatype, shape, content, STRING_BYTES)


def small_strings(content: bytes) -> list[bytes]:
    """Return the strings of a Raw."""
    starts = range(0, len(content), STRING_BYTES)
    return [content[start + 1 : start + 1 + (content[start] >> 2)] for start in starts]


def to_array(tensor: int) -> Array:
    """Return a TF_Tensor's values; strings are bytes objects in an object array.

    The array is read-only where its values are not strings. Raises ValueError for types without one in NumPy.
    """
    tf = library()
    shape = tuple(tf.TF_Dim(tensor, index) for index in range(tf.TF_NumDims(tensor)))
    datatype = tf.TF_TensorType(tensor)
    if datatype == types_pb2.DT_STRING:
        return _strings(tf.TF_TensorData(tensor), shape)
    if datatype not in NUMPY_TYPES:
        raise ValueError(f"no arrays of type {datatype}")
    dtype = np.dtype(NUMPY_TYPES[datatype])
    if 0 in shape:
        return np.empty(shape, dtype)
    content = ctypes.string_at(tf.TF_TensorData(tensor), tf.TF_TensorByteSize(tensor))
    return np.frombuffer(content, dtype).reshape(shape)


@cache
def strings_are_as_known() -> bool:
    """Whether TF_TString is laid out as tsl/platform/ctstring_internal.h says; tried, not assumed.

    Where it is not, strings are read and written one by one through functions of the library.
    """
    tf = library()
    raw = ctypes.create_string_buffer(STRING_BYTES)
    text = c_char_p(b"twenty-two bytes fit in")
    tf.TF_StringInit(raw)
    tf.TF_StringCopy(raw, b"small", 5)
    small = raw.raw[:6] == bytes((5 << 2 | _SMALL,)) + b"small"
    tf.TF_StringAssignView(raw, text, 23)
    size, address = np.frombuffer(raw.raw, np.uint64)[:2].tolist()
    return small and size == 23 << 2 | _VIEW and address == ctypes.cast(text, c_void_p).value


def _views(values: Sequence[bytes]) -> int:
    count = len(values)
    if not strings_are_as_known():
        array = np.empty(count, np.object_)
        array[:] = values
        return _owned(array)
    tf = library()
    tensor = tf.TF_AllocateTensor(types_pb2.DT_STRING, (c_int64 * 1)(count), 1, count * STRING_BYTES)
    if count:
        memory = (ctypes.c_uint64 * (3 * count)).from_address(tf.TF_TensorData(tensor))
        words = np.frombuffer(memoryview(memory), np.uint64).reshape(count, 3)
        words[:, 0] = np.fromiter(map(len, values), np.uint64, count) << 2 | _VIEW
        words[:, 1] = np.frombuffer(memoryview((c_char_p * count)(*values)).cast("B"), np.uint64)
    return int(tensor)


def _owned(array: Array) -> int:
    """Return a string tensor with memory of its own, freed when the last op has let go of it."""
    tf = library()
    values = array.reshape(-1).tolist()
    memory = ctypes.create_string_buffer(max(1, len(values)) * STRING_BYTES)
    address = ctypes.addressof(memory)
    for index, value in enumerate(values):
        tf.TF_StringCopy(address + index * STRING_BYTES, value, len(value))
    _owned_strings[address] = memory
    dims = (c_int64 * array.ndim)(*array.shape)
    return int(
        tf.TF_NewTensor(
            types_pb2.DT_STRING, dims, array.ndim, address, len(values) * STRING_BYTES, _FREE_STRINGS, None
        )
    )


def _free_strings(address: int, size: int, _: int) -> None:
    for place in range(address, address + size, STRING_BYTES):
        library().TF_StringDealloc(place)
    del _owned_strings[address]


_FREE_STRINGS = Deallocator(_free_strings)


def _strings(address: int, shape: tuple[int, ...]) -> Array:
    count = int(np.prod(shape, dtype=np.int64))
    values = np.empty(count, np.object_)
    raw = ctypes.string_at(address, count * STRING_BYTES) if count else b""
    small = strings_are_as_known()
    for index, start in enumerate(range(0, len(raw), STRING_BYTES)):
        if small and raw[start] & _TYPE_BITS == _SMALL:
            values[index] = raw[start + 1 : start + 1 + (raw[start] >> 2)]
        else:
            values[index] = _string(address + start)
    return values.reshape(shape)


def _string(place: int) -> bytes:
    tf = library()
    return ctypes.string_at(tf.TF_StringGetDataPointer(place), tf.TF_StringGetSize(place))
