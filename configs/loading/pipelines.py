"""Reading a `pipeline.yaml` (`load_pipeline()`), and every other YAML, strictly (`load_strictly()`).

Every error says where: file, line, column and key path; unknown keys name the nearest known one.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from configs.loading.errors import ConfigError
from configs.schema.pipeline import PipelineConfig

Key = str | int
Model = TypeVar("Model", bound=BaseModel)
# What PyYAML's safe constructors raise besides its own errors, for such as `!!bool x` or `[[[[…`.
_YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Pipeline:
    """A validated configuration and the file it came from."""

    config: PipelineConfig
    file: Path
    """Absolute path of the YAML."""

    @property
    def folder(self) -> Path:
        """The folder that relative paths in the YAML are relative to."""
        return self.file.parent

    @property
    def model_base_path(self) -> Path:
        """The absolute folder of versions."""
        return self.config.model_base_path(self.folder)


def load_pipeline(path: Path | str, overrides: Mapping[str, Any] | None = None) -> Pipeline:
    """Read and validate the pipeline at `path`, a folder that holds `pipeline.yaml` or a YAML file.

    `overrides` maps key paths (`training.max_steps`) to values that replace the file's. Raises
    ConfigError, with all that is wrong in one message.
    """
    file = _find_file(Path(path))
    document = _Document.read(file)
    values = document.values
    for key_path, value in (overrides or {}).items():
        _override(values, key_path, value)
    return Pipeline(_validated(PipelineConfig, document, overrides or {}), file)


def load_strictly(model: type[Model], file: Path) -> Model:
    """Read the YAML `file` as a `model`. Raises ConfigError, with all that is wrong in one message."""
    return _validated(model, _Document.read(file), {})


def place_of(file: Path, keys: Sequence[Key]) -> str:
    """Return `file:line:column` of the deepest of `keys` that is in the YAML."""
    return _Document.read(file).place(keys)


def _validated(model: type[Model], document: _Document, overrides: Mapping[str, Any]) -> Model:
    try:
        return model.model_validate(document.values)
    except ValidationError as error:
        raise ConfigError(_describe(error, model, document, overrides)) from None


def parse_override(text: str) -> tuple[str, Any]:
    """Split `key.path=value` as `--set` takes it; the value is read as YAML."""
    key_path, equals, value = text.partition("=")
    if not equals or not key_path.strip():
        raise ConfigError(f"--set {text!r}: expected key.path=value", "such as --set training.max_steps=500")
    try:
        return key_path.strip(), yaml.safe_load(value)
    except _YAML_ERRORS as error:
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"--set {text!r}: the value is not YAML: {problem}") from None


def _find_file(path: Path) -> Path:
    try:
        file = path / "pipeline.yaml" if path.is_dir() else path
        found = file.is_file()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if not found:
        raise ConfigError(f"{file}: no such file", _nearby_pipelines(path))
    return Path(os.path.abspath(file))


def _nearby_pipelines(path: Path) -> str:
    for folder in (path, path.parent):
        if found := sorted(str(file.parent) for file in folder.glob("*/pipeline.yaml")):
            return f"pipelines there: {', '.join(found)}"
    return "name a folder that holds pipeline.yaml, or a YAML file"


class _Document:
    """The values of a YAML file, and the place of each."""

    def __init__(self, file: Path, root: yaml.Node | None, values: dict[str, Any]) -> None:
        self.file, self._root, self.values = file, root, values

    @classmethod
    def read(cls, file: Path) -> _Document:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: cannot be read: {error}") from None
        try:
            loader = yaml.SafeLoader(text)
            root = loader.get_single_node()
            if root is not None:
                _refuse_duplicate_keys(file, root)
            values = loader.construct_document(root) if root is not None else {}
        except yaml.MarkedYAMLError as error:
            raise ConfigError(_syntax_error(file, error)) from None
        except _YAML_ERRORS as error:
            raise ConfigError(f"{file}: not valid YAML: {error}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{file}:1:1: expected a mapping of keys, found {type(values).__name__}")
        return cls(file, root, values)

    def place(self, keys: Sequence[Key]) -> str:
        """Return `file:line:column` of the deepest of `keys` that is in the file."""
        node = self._root
        mark = node.start_mark if node is not None else None
        for key in keys:
            found = _child(node, key)
            if found is None:
                break
            mark, node = found
        return f"{self.file}:{mark.line + 1}:{mark.column + 1}" if mark else str(self.file)


def _child(node: yaml.Node | None, key: Key) -> tuple[yaml.Mark, yaml.Node] | None:
    """Return where `key` stands in `node`, and its value."""
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in reversed(node.value):  # what `<<` merges in stands first, and yields
            if key_node.value == str(key):
                return key_node.start_mark, value_node
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key].start_mark, node.value[key]
    return None


def _refuse_duplicate_keys(
    file: Path, node: yaml.Node, path: str = "", above: tuple[yaml.Node, ...] = ()
) -> None:
    if any(node is ancestor for ancestor in above):
        place = f"{file}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
        raise ConfigError(f"{place}: {path!r} is an alias of what it stands in", "write the value out")
    for label, child in _children(file, node, path):
        _refuse_duplicate_keys(file, child, label, (*above, node))


def _children(file: Path, node: yaml.Node, path: str) -> Iterator[tuple[str, yaml.Node]]:
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            yield f"{path}[{index}]", child
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key_node, child in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # such as `? [a]`: refused when it is constructed
            label = f"{path}.{key_node.value}".lstrip(".")
            line, column = key_node.start_mark.line + 1, key_node.start_mark.column + 1
            if key_node.value in first:
                before = first[key_node.value]
                raise ConfigError(
                    f"{file}:{line}:{column}: duplicate key {label!r}, first given in line {before}",
                    "remove one of them: YAML would silently keep the last",
                )
            first[key_node.value] = line
            yield label, child


def _syntax_error(file: Path, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
    return f"{place}: not valid YAML: {error.problem or error.context}"


def _override(values: dict[str, Any], key_path: str, value: Any) -> None:
    target = values
    *parents, last = key_path.split(".")
    for key in parents:
        child = target.get(key, {})
        if isinstance(child, list):
            raise ConfigError(
                f"--set {key_path}: {key!r} is a list in the file, expected a mapping: {child!r}"
            )
        if not isinstance(child, dict):
            child = {}  # `tolerance: auto` becomes `tolerance: {rtol: …}`
        target[key] = dict(child)  # a copy: by a YAML alias the same mapping may stand elsewhere too
        target = target[key]
    target[last] = value


def _describe(
    error: ValidationError, model: type[BaseModel], document: _Document, overrides: Mapping[str, Any]
) -> str:
    lines = []
    for detail in error.errors(include_url=False):
        keys = _keys_in(document.values, detail)
        path = ".".join(str(key) for key in keys)
        place = _overriding(path, overrides) or document.place(keys)
        subject = f": '{path}'" if path else ""
        lines.append(f"{place}{subject}{_problem(detail, keys, model)}")
    return "\n".join(lines)


def _overriding(path: str, overrides: Mapping[str, Any]) -> str | None:
    """Return the override that put a value at, above or below `path`."""
    for key in overrides:
        if path and (f"{path}.".startswith(f"{key}.") or f"{key}.".startswith(f"{path}.")):
            return f"--set {key}"
    return None


def _keys_in(values: Any, detail: ErrorDetails) -> list[Key]:
    """Return the location without the union tags that pydantic puts between the keys."""
    keys: list[Key] = []
    for position, step in enumerate(detail["loc"], start=1):
        if _has(values, step):
            values = values[step]
        elif not (detail["type"] == "missing" and position == len(detail["loc"])):
            continue
        keys.append(step)
    return keys


def _has(values: Any, step: Key) -> bool:
    if isinstance(values, list | tuple):
        return isinstance(step, int) and step < len(values)
    return isinstance(values, dict) and step in values


def _problem(detail: ErrorDetails, keys: Sequence[Key], model: type[BaseModel]) -> str:
    kind, found = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return f" is not a known key{_suggestion(str(keys[-1]), _valid_keys(detail, model))}"
    if kind == "missing":
        return " is required"
    if kind == "invalid_key":
        return f": the key {found!r} is not a string: put it in quotes"
    message = detail["msg"].removeprefix("Value error, ")
    if kind == "union_tag_not_found":
        message = "lacks its 'kind'"
    if kind == "value_error" or isinstance(found, dict):
        return f": {message}"
    return f" = {found!r}: {message[:1].lower()}{message[1:]}"


def _suggestion(key: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.6)
    known = f"; known here: {', '.join(valid)}" if valid else ""
    return f": did you mean '{near[0]}'?" if near else known


def _valid_keys(detail: ErrorDetails, model: type[BaseModel]) -> list[str]:
    """Return the keys that the slice at this location knows."""
    found: Any = model
    for step in detail["loc"][:-1]:
        found = _step_into(found, step)
    models = list(_models_in(found))
    fields = models[0].model_fields if len(models) == 1 else {}
    return sorted(field.alias or name for name, field in fields.items())


def _step_into(annotation: Any, step: Key) -> Any:
    """Return the type found at `step` (a field, an index, a dict key or a union tag) of `annotation`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(step))
        return field.annotation if field else None
    candidates = list(_models_in(annotation))
    tagged = [model for model in candidates if step in (_tag(model), model.__name__)]
    if tagged:
        return tagged[0]
    with_field = [model for model in candidates if str(step) in model.model_fields]
    if with_field:
        return with_field[0].model_fields[str(step)].annotation
    return candidates[0] if len(candidates) == 1 else annotation


def _tag(model: type[BaseModel]) -> str | None:
    kind = model.model_fields.get("kind")
    literal: tuple[Any, ...] = getattr(kind.annotation, "__args__", ()) if kind else ()
    return str(literal[0]) if len(literal) == 1 else None


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield every slice that occurs in a type such as `dict[str, FeatureSpec]` or `tuple[A | B, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)
