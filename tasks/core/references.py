"""Callables that a pipeline names: `file.py:function` beside its YAML, or `package.module:function`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from tasks.core.errors import SlipwayError


def resolve(reference: str, folder: Path, key: str, wrong: type[SlipwayError]) -> Callable[..., Any]:
    """Return the callable that `reference`, found under `key` in the YAML in `folder`, names.

    `folder` is first on sys.path from now on, so that the module can import its neighbours. Raises
    `wrong` with the place where there is no such file, module or function, it does not import, or is
    not callable.
    """
    place = f"{key} = {reference!r}"
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    name, _, attribute = reference.rpartition(":")
    module = _import(name, folder, place, wrong)
    found = getattr(module, attribute, None)
    if found is None:
        raise wrong(f"{place}: {module.__file__} has no {attribute!r}", _names_in(module, attribute))
    if not callable(found):
        message = f"{place}: expected a function, found {type(found).__name__} {found!r} in {module.__file__}"
        raise wrong(message, "name a function or a class")
    return found  # type: ignore[no-any-return]


def _import(name: str, folder: Path, place: str, wrong: type[SlipwayError]) -> ModuleType:
    try:
        return _load_file(folder / name) if name.endswith(".py") else importlib.import_module(name)
    except FileNotFoundError as error:
        if error.filename != str(folder / name):
            raise wrong(f"{place} does not import: {_explained(error)}", _traceback_hint()) from error
        raise wrong(f"{place}: no such file: {folder / name}", "the path is relative to the YAML") from None
    except Exception as error:
        raise wrong(f"{place} does not import: {_explained(error)}", _traceback_hint()) from error


def _load_file(file: Path) -> ModuleType:
    """Import a file under its stem, unless a module of that name is loaded from elsewhere."""
    name = file.stem
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ == str(file):
        return loaded
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if loaded is None:
        sys.modules[name] = module  # so that a neighbour that imports it gets the same module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if sys.modules.get(name) is module:
            del sys.modules[name]
        raise
    return module


def _explained(error: Exception) -> str:
    """Return what went wrong, with file and line."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        return text
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    own = [frame for frame in frames if frame.filename != __file__]
    return f"{text} ({own[-1].filename}:{own[-1].lineno})" if own else text


def _traceback_hint() -> str:
    return "the traceback is in the stage's log; the same Python must be able to import it"


def _names_in(module: ModuleType, wanted: str) -> str:
    public = {name: value for name, value in vars(module).items() if callable(value) and name[0] != "_"}
    own = [name for name, value in public.items() if getattr(value, "__module__", "") == module.__name__]
    near = difflib.get_close_matches(wanted, own, n=1)
    return f"did you mean {near[0]!r}?" if near else f"functions there: {', '.join(own) or 'none'}"
