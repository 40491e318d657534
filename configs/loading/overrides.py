"""What one run may be told in place of its YAML: the form in the Prefect UI, and `--set`.

Key path to value. The paths that are asked for most have the types, limits and descriptions of the schema,
so that the form refuses a wrong value; any other path may be added, and is checked when the run begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema

from configs.schema.pipeline import PipelineConfig

OFFERED = (
    "training.max_steps", "training.batch_size", "training.seed", "training.stall_timeout_seconds",
    "evaluation.batch_size", "export.keep_versions", "deployment.target", "deployment.load_timeout_seconds",
)  # fmt: skip
"""None of them may be null in the YAML: null says that a field is not given."""
_LIMITS = {"exclusiveMinimum": "more than", "minimum": "at least", "maximum": "at most"}
_FORCED = {"evaluation.gate": "reported"}


def _field(path: str) -> FieldInfo:
    """Return the schema's field at a key path."""
    model: Any = PipelineConfig
    *parents, last = path.split(".")
    for parent in parents:
        model = model.model_fields[parent].annotation
    found: FieldInfo = model.model_fields[last]
    return found


def _optional(position: int, path: str) -> tuple[Any, Any]:
    """Return a field that need not be given; in the form it is a box, and not a choice between two types."""
    field = _field(path)
    typed: Any = (field.annotation, *field.metadata)
    limited: Any = Annotated[typed] if field.metadata else field.annotation

    def shown_as(schema: dict[str, Any]) -> None:
        schema["position"] = position
        del schema["default"]
        limits = [f"{words} {schema[key]}" for key, words in _LIMITS.items() if key in schema]
        facts = "; ".join([*limits, f"default {field.default}"])
        schema["description"] = f"In place of the YAML's {path} ({facts}). {field.description or ''}"

    shown = Field(None, alias=path, title=path, json_schema_extra=shown_as)
    return limited | SkipJsonSchema[None], shown  # type: ignore[misc]


if TYPE_CHECKING:
    Overrides = Mapping[str, Any]
else:
    Overrides = create_model(
        "Overrides",
        __config__=ConfigDict(extra="allow", populate_by_name=False, title="Overrides"),
        **{path.replace(".", "__"): _optional(at, path) for at, path in enumerate(OFFERED)},
    )

NOTHING: Overrides = {}
"""What a run is told by default: in the form, all fields lie open."""


def given(overrides: Mapping[str, Any] | BaseModel | None, *, force: bool = False) -> dict[str, Any]:
    """Return key path to value, as `load_pipeline` takes it, without the fields that were left empty.

    With `force` the gate on metrics is passed over: missed thresholds are told, and reject nothing.
    """
    told = _filled(overrides) if isinstance(overrides, BaseModel) else dict(overrides or {})
    return {**told, **_FORCED} if force else told


def _filled(form: BaseModel) -> dict[str, Any]:
    """Return what was filled in."""
    told = form.model_dump(by_alias=True)
    return {path: value for path, value in told.items() if value is not None or path not in OFFERED}
