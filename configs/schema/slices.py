"""What every slice of the configuration is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Reference = Annotated[str, Field(pattern=r"^[^:\s]+:[A-Za-z_]\w*$")]
"""A callable: `file.py:function`, relative to the YAML, or `package.module:function`."""


class Slice(BaseModel):
    """A frozen part of the configuration; unknown keys are errors, and so are infinite numbers and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
