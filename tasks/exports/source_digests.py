"""What code and files a model is made of, besides its examples: digests that change when one of them does."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import yaml

from configs.schema.home import home

_MODULE = re.compile(r"([A-Za-z_]\w*)(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_SECTIONS = ("data", "model", "training", "export")
_NOT_OF_THE_MODEL = ("gates", "files")  # keys of `data`: examples have a digest of their own


def made_by(config: Path) -> dict[str, Any]:
    """Return the sections of a resolved configuration that make a model; {} if it cannot be read."""
    try:
        values = yaml.safe_load(config.read_text())
        return {
            name: {key: value for key, value in values[name].items() if key != "gates"}
            for name in _SECTIONS
        }  # fmt: skip
    except (OSError, yaml.YAMLError, TypeError, KeyError, AttributeError):
        return {}


def of_code(source: Path, config: Path) -> str:
    """Return the SHA-256 of the Python files below the YAML's folder and of the packages that it names.

    A package is one of `package.module:function`; all of its Python files count, and their names.
    """
    code = _digest((str(file.relative_to(source)), file) for file in _python_files(source))
    packages = (code_of for name in _packages(config) for code_of in _files_of(name, source))
    return hashlib.sha256(f"{code}{_digest(packages)}".encode()).hexdigest()


def of_files(source: Path, config: Path) -> str:
    """Return the SHA-256 of the files that the YAML names: vocabularies, extra assets, and others."""
    values = made_by(config)
    data = {key: value for key, value in values.get("data", {}).items() if key not in _NOT_OF_THE_MODEL}
    named = sorted({text for text in _strings({**values, "data": data}) if text})
    return _digest((text, path) for text in named if (path := _file(source, text)) is not None)


def of_file(file: Path) -> str | None:
    """Return the SHA-256 of a file; None if it is not there."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _digest(files: Iterable[tuple[str, Path]]) -> str:
    found = hashlib.sha256()
    for name, file in files:
        found.update(f"{name}\0{of_file(file)}\n".encode(errors="surrogateescape"))
    return found.hexdigest()


def _python_files(folder: Path) -> Iterator[Path]:
    """Yield the Python files below `folder` in one order, without hidden folders and environments."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(name for name in folders if not _is_foreign(here / name))
        yield from (here / name for name in sorted(files) if name.endswith(".py"))


def _is_foreign(folder: Path) -> bool:
    hidden = folder.name.startswith(".") or folder.name == "__pycache__"
    return hidden or folder == home() or (folder / "pyvenv.cfg").is_file()


def _packages(config: Path) -> list[str]:
    """Return the top-level packages of each `package.module:function` in the configuration."""
    matches = (_MODULE.fullmatch(text) for text in _strings(made_by(config)))
    return sorted({match[1] for match in matches if match and not match[0].partition(":")[0].endswith(".py")})


def _files_of(package: str, source: Path) -> Iterator[tuple[str, Path]]:
    spec = _found(package, source)
    if spec is None:
        return
    for folder in map(Path, spec.submodule_search_locations or ()):
        yield from ((f"{package}/{file.relative_to(folder)}", file) for file in _python_files(folder))
    if not spec.submodule_search_locations and spec.origin is not None:
        yield package, Path(spec.origin)


def _found(package: str, source: Path) -> ModuleSpec | None:
    """Return where a package would be imported from; nothing is imported."""
    try:
        beside = PathFinder.find_spec(package, [str(source), str(Path.cwd())])
        return beside or importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from (*_strings(key), *_strings(each))
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def _file(source: Path, text: str) -> Path | None:
    try:
        path = source / Path(text).expanduser()
        return path if path.is_file() else None
    except (OSError, ValueError, RuntimeError):
        return None  # too long for a name, a null byte, an unknown user
