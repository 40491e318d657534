"""Generate the pages under docs/reference from the code; with --check only say whether they are current."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import command_reference
import mistakes
import model_server_tables
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from configs.schema import features
from configs.schema.pipeline import PipelineConfig

REFERENCE = Path(__file__).parent / "reference"

_HEAD = """\
# pipeline.yaml

Generated from `configs/schema.py` by `make docs`; do not edit. `slipway schema` prints the same as JSON
Schema, for editors. A key that is not here is an error that names the nearest one.
"""


def _page() -> Iterator[str]:
    yield _HEAD
    yield from _rows("Top level", PipelineConfig, "")
    for name, field in PipelineConfig.model_fields.items():
        slice_type = field.annotation
        if isinstance(slice_type, type) and issubclass(slice_type, BaseModel):
            yield from _rows(f"`{name}`", slice_type, f"{name}.")
    yield "## Feature columns\n"
    yield "What `model.feature_columns` may list; each says its `kind`.\n"
    for column in _columns():
        kind = get_args(column.model_fields["kind"].annotation)[0]
        yield from _rows(f"`kind: {kind}`", column, "", level=3)


def _columns() -> Iterator[type[BaseModel]]:
    yield from get_args(get_args(features.FeatureColumn)[0])


def _rows(title: str, model: type[BaseModel], prefix: str, level: int = 2) -> Iterator[str]:
    yield f"{'#' * level} {title}\n"
    yield f"{_flat(model.__doc__)}\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for name, field in model.model_fields.items():
        if name != "kind" or prefix:
            yield from _row(f"{prefix}{name}", field)
    yield ""


def _row(key: str, field: FieldInfo) -> Iterator[str]:
    annotation = _mapping_form(field.annotation)
    inner = _slice_in(annotation)
    meaning = _flat(field.description) or _flat(inner.__doc__ if inner else "")
    yield f"| `{key}` | {_type(field)} | {_default(field)} | {meaning} |"
    nested = isinstance(annotation, type) and "." in key
    listed = get_origin(annotation) is tuple
    if inner is not None and (
        nested or listed or key.endswith(("features", "label", "thresholds", "limits", "changes"))
    ):
        below = key if nested else f"{key}[]" if listed else f"{key}.<name>"
        for name, child in inner.model_fields.items():
            yield from _row(f"{below}.{child.alias or name}", child)


def _mapping_form(annotation: Any) -> Any:
    """Return the one slice among the forms of a union, such as `X | None`; any other annotation as it is."""
    if get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation
    forms = [get_args(form)[0] if get_origin(form) is Annotated else form for form in get_args(annotation)]
    slices = [form for form in forms if isinstance(form, type) and issubclass(form, BaseModel)]
    return slices[0] if len(slices) == 1 else annotation


def _slice_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (
        [_slice_in(argument) for argument in get_args(annotation)]
        if get_origin(annotation) in (dict, tuple)
        else []
    )
    return next((model for model in found if model is not None), None)


def _type(field: FieldInfo) -> str:
    bounds = [_bound(item) for item in field.metadata]
    return ", ".join([_named(field.annotation), *filter(None, bounds)])


def _bound(item: Any) -> str:
    for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
        if getattr(item, name, None) is not None:
            return f"{sign} {getattr(item, name)}"
    return ""


def _named(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return " ".join([_named(arguments[0]), *filter(None, map(_bound, arguments[1:]))])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_named(argument) for argument in arguments if argument is not type(None))
    if origin in (tuple, dict):
        return f"list of {_named(arguments[0])}" if origin is tuple else f"mapping of {_named(arguments[1])}"
    return _plain_name(annotation)


def _plain_name(annotation: Any) -> str:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}]" if annotation.__name__.endswith("Column") else "mapping"
    names = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path"}
    return names.get(annotation, "any")


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "**required**"
    if isinstance(field.default, BaseModel) or field.default in (None, {}):
        return ""
    if isinstance(field.default, tuple):
        items = (f"[{', '.join(item)}]" if isinstance(item, tuple) else str(item) for item in field.default)
        return f"`[{', '.join(items)}]`"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def _flat(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def main() -> int:
    """Write the pages, or with --check compare them."""
    server = REFERENCE / "model-server.md"
    pages = {
        REFERENCE / "pipeline.md": "\n".join(_page()).rstrip() + "\n",
        REFERENCE / "command.md": "\n".join(command_reference.page()).rstrip() + "\n",
        REFERENCE / "mistakes.md": "\n".join(mistakes.page()).rstrip() + "\n",
        server: model_server_tables.filled(server.read_text()),
    }
    wrong = [path for path, page in pages.items() if not _is_current(path, page)]
    for path in wrong:
        sys.stderr.write(f"{path} is not what the code says: run `make docs`\n")
    return 1 if wrong else 0


def _is_current(path: Path, page: str) -> bool:
    if "--check" not in sys.argv:
        path.write_text(page)
    return path.is_file() and path.read_text() == page


if __name__ == "__main__":
    sys.exit(main())
