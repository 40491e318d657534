"""What every slice of the configuration is made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

Reference = Annotated[str, Field(pattern=r"^[^:\s]+:[A-Za-z_]\w*$")]
"""A callable: `file.py:function`, relative to the YAML, or `package.module:function`."""


class Slice(BaseModel):
    """A frozen part of the configuration; unknown keys are errors, and so are infinite numbers and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Ulps(Slice):
    """Accept floats that are at most so many units in the last place apart."""

    ulps: Annotated[int, Field(ge=0, le=1_000_000)]
    """Representable floats that may lie between the two numbers, plus one; 0 is `exact`."""


class Rtol(Slice):
    """Accept floats that differ by at most so large a part of the expected one; all else must be equal."""

    rtol: Annotated[float, Field(gt=0, lt=1)]
    """|found - expected| at most `rtol` times |expected|, as NumPy has it, without an absolute part."""


def _tolerance_form(value: Any) -> str:
    if isinstance(value, Rtol) or (isinstance(value, dict) and "rtol" in value):
        return "Rtol"
    return "Ulps" if isinstance(value, dict | Ulps) else "exact"


Tolerance = Annotated[
    Annotated[Literal["exact"], Tag("exact")] | Annotated[Ulps, Tag("Ulps")] | Annotated[Rtol, Tag("Rtol")],
    Discriminator(_tolerance_form),
]
