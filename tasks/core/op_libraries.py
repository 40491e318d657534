"""`server.ops`: the libraries of custom ops that a pipeline's graphs may have, found on this machine."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

from tasks.core.artifacts import OpLibrary
from tasks.core.errors import EnvironmentFault

_REGISTERS = (b"OpDefBuilder", b"KernelDefBuilder", b"TF_RegisterOpDefinition", b"TF_RegisterKernelBuilder")
_PYTHON_MODULE = b"PyInit_"
VARIABLE = "MODEL_SERVER_OPS"
"""Tells the model server, and what runs its modules, which libraries to load."""


def found(ops: Sequence[str], source: Path) -> tuple[OpLibrary, ...]:
    """Return the libraries that `server.ops` names, in order; `source` holds the YAML.

    Raises EnvironmentFault for a file or package that is not there, or a package without ops.
    """
    libraries = [OpLibrary(path, _digest(path)) for each in ops for path in _paths(each, source)]
    names = [each.path.name for each in libraries]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise EnvironmentFault(
            f"server.ops: two libraries are named {repeated[0]}", "name each once, or rename a file"
        )
    return tuple(libraries)


def _paths(op: str, source: Path) -> list[Path]:
    if op.endswith(".so"):
        path = (source / Path(op).expanduser()).resolve()
        if not path.is_file():
            raise EnvironmentFault(f"server.ops: no such file: {path}", "the path is relative to the YAML")
        return [path]
    spec = importlib.util.find_spec(op.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentFault(
            f"server.ops: no package {op} is installed",
            "install it, or give the path of a .so",
        )
    paths = [path for folder in spec.submodule_search_locations for path in _op_libraries(Path(folder))]
    if not paths:
        raise EnvironmentFault(f"server.ops: the package {op} has no library of TensorFlow ops")
    return paths


def _op_libraries(folder: Path) -> Iterator[Path]:
    """Yield the shared objects below a folder that register ops or kernels and are no Python modules."""
    for path in sorted(folder.resolve().rglob("*.so")):
        content = path.read_bytes()
        if _PYTHON_MODULE not in content and any(symbol in content for symbol in _REGISTERS):
            yield path


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise EnvironmentFault(f"server.ops: {path} cannot be read: {error.strerror}") from None
