"""Does what the YAML names exist? Answered by reading the files, without importing anything."""

from __future__ import annotations

import ast
import difflib
from pathlib import Path

from configs.loading.errors import ConfigError
from configs.loading.pipelines import Pipeline


def require_callables(pipeline: Pipeline) -> None:
    """Raise ConfigError unless each `file.py:function` in the YAML names a file that defines it.

    So do extra assets that are not there. What `package.module:function` names is known only
    once it is imported, where it is used.
    """
    data, model = pipeline.config.data, pipeline.config.model
    named = [
        ("data.ingest", data.ingest), ("model.factory", model.factory), ("model.graph", model.graph),
        ("model.preprocess", model.preprocess),
        *(("export.receivers", receiver) for receiver in pipeline.config.export.receivers),
    ]  # fmt: skip
    for key, reference in named:
        file, _, function = (reference or "").rpartition(":")
        if file.endswith(".py"):
            _require(pipeline.folder / file, function, f"{pipeline.file}: '{key}' = {reference!r}")
    for destination, asset in pipeline.config.export.assets_extra.items():
        place = f"{pipeline.file}: 'export.assets_extra.{destination}' = {asset!r}"
        _require_file(pipeline.folder / asset, place)


def _require_file(file: Path, place: str) -> None:
    if not file.is_file():
        raise ConfigError(f"{place}: no such file: {file}", "the path is relative to the YAML")


def _require(file: Path, function: str, place: str) -> None:
    _require_file(file, place)
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    except (SyntaxError, ValueError) as error:  # ValueError: not UTF-8, or null bytes
        line = getattr(error, "lineno", None) or 1
        raise ConfigError(f"{place}: {file}:{line} is not valid Python: {error}") from None
    names = _names_defined(tree)
    if function not in names:
        near = difflib.get_close_matches(function, names, n=1)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"it defines: {', '.join(sorted(names)) or 'nothing'}"
        )
        raise ConfigError(f"{place}: {file} defines no {function!r}", hint)


def _names_defined(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
    return names
