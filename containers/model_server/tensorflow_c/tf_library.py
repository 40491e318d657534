"""TensorFlow's public C API (tensorflow/c/c_api.h), by ctypes: what serving needs of it, and no more.

Python's `Session` builds a Python object for each node of a graph under the interpreter's lock, rewrites
error messages, and takes 40 µs a call. The C API loads a SavedModel as the official server does, without
the lock, and its errors are the official texts.
"""

from __future__ import annotations

import ctypes
import importlib.util
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

_LIBRARIES = ("libtensorflow_framework.so.2", "libtensorflow_cc.so.2")
STRING_BYTES = 24  # sizeof(TF_TString)


class Buffer(ctypes.Structure):
    """TF_Buffer."""

    _fields_ = (("data", c_void_p), ("length", c_size_t), ("deallocator", c_void_p))


class Output(ctypes.Structure):
    """TF_Output: the tensor that an operation puts out at an index."""

    _fields_ = (("operation", c_void_p), ("index", c_int))


class Input(ctypes.Structure):
    """TF_Input: the place at which an operation takes a tensor in."""

    _fields_ = (("operation", c_void_p), ("index", c_int))


Deallocator = ctypes.CFUNCTYPE(None, c_void_p, c_size_t, c_void_p)

# Result and arguments of each function; None is void.
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "TF_GetAllOpList": (POINTER(Buffer), ()),
    "TF_LoadLibrary": (c_void_p, (c_char_p, c_void_p)),
    "TF_NewStatus": (c_void_p, ()),
    "TF_DeleteStatus": (None, (c_void_p,)),
    "TF_GetCode": (c_int, (c_void_p,)),
    "TF_Message": (c_char_p, (c_void_p,)),
    "TF_NewGraph": (c_void_p, ()),
    "TF_DeleteGraph": (None, (c_void_p,)),
    "TF_NewBuffer": (POINTER(Buffer), ()),
    "TF_NewBufferFromString": (POINTER(Buffer), (c_char_p, c_size_t)),
    "TF_DeleteBuffer": (None, (POINTER(Buffer),)),
    "TF_NewSessionOptions": (c_void_p, ()),
    "TF_DeleteSessionOptions": (None, (c_void_p,)),
    "TF_SetConfig": (None, (c_void_p, c_char_p, c_size_t, c_void_p)),
    "TF_NewSession": (c_void_p, (c_void_p, c_void_p, c_void_p)),
    "TF_LoadSessionFromSavedModel": (
        c_void_p,
        (c_void_p, c_void_p, c_char_p, POINTER(c_char_p), c_int, c_void_p, POINTER(Buffer), c_void_p),
    ),
    "TF_CloseSession": (None, (c_void_p, c_void_p)),
    "TF_DeleteSession": (None, (c_void_p, c_void_p)),
    "TF_SessionRun": (
        None,
        (c_void_p, POINTER(Buffer), POINTER(Output), POINTER(c_void_p), c_int, POINTER(Output),
         POINTER(c_void_p), c_int, c_void_p, c_int, c_void_p, c_void_p),
    ),
    "TF_GraphOperationByName": (c_void_p, (c_void_p, c_char_p)),
    "TF_OperationNumOutputs": (c_int, (c_void_p,)),
    "TF_OperationOutputType": (c_int, (Output,)),
    "TF_OperationOutputNumConsumers": (c_int, (Output,)),
    "TF_OperationOutputConsumers": (c_int, (Output, POINTER(Input), c_int)),
    "TF_OperationOpType": (c_char_p, (c_void_p,)),
    "TF_NewTensor": (c_void_p, (c_int, POINTER(c_int64), c_int, c_void_p, c_size_t, Deallocator, c_void_p)),
    "TF_AllocateTensor": (c_void_p, (c_int, POINTER(c_int64), c_int, c_size_t)),
    "TF_DeleteTensor": (None, (c_void_p,)),
    "TF_TensorType": (c_int, (c_void_p,)),
    "TF_NumDims": (c_int, (c_void_p,)),
    "TF_Dim": (c_int64, (c_void_p, c_int)),
    "TF_TensorByteSize": (c_size_t, (c_void_p,)),
    "TF_TensorData": (c_void_p, (c_void_p,)),
    "TF_StringInit": (None, (c_void_p,)),
    "TF_StringCopy": (None, (c_void_p, c_char_p, c_size_t)),
    "TF_StringAssignView": (None, (c_void_p, c_char_p, c_size_t)),
    "TF_StringGetDataPointer": (c_void_p, (c_void_p,)),
    "TF_StringGetSize": (c_size_t, (c_void_p,)),
    "TF_StringDealloc": (None, (c_void_p,)),
}  # fmt: skip


@cache
def library() -> Any:
    """Return the library with its functions declared; the first call takes about 0.2 s.

    Raises ModuleNotFoundError without TensorFlow, OSError or AttributeError where its library is another.
    """
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'tensorflow'")
    directory = Path(next(iter(spec.submodule_search_locations)))
    for name in _LIBRARIES:
        # Its symbols for itself only: other extensions bring libraries of the same names (absl, protobuf).
        loaded = ctypes.CDLL(str(directory / name), mode=ctypes.RTLD_LOCAL)
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded
