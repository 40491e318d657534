"""The slice `answers`: which sample examples a model is asked about, and when two answers are equal."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from configs.schema.slices import Slice

BatchSize = Annotated[int, Field(ge=1, le=4096)] | Literal["all"]


class Ulps(Slice):
    """Accept floats that are at most this number of units in the last place apart."""

    ulps: Annotated[int, Field(ge=0, le=1_000_000)]
    """Representable floats that may lie between the two numbers, plus one; 0 is `exact`."""


class Near(Slice):
    """Accept floats for which `|found - expected| <= atol + rtol * |expected|`; all else must be equal."""

    rtol: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest difference as a fraction of the expected number."""

    atol: Annotated[float, Field(ge=0)] | None = None
    """Largest difference in the output's own unit. Default: `rtol` times the largest magnitude of the output
    over the samples, so that values near zero are compared at the scale of their output."""

    @model_validator(mode="after")
    def _allows_something(self) -> Near:
        if not self.rtol and not self.atol:
            raise ValueError("give 'rtol', 'atol' or both, above 0; for none write tolerance: exact")
        return self


def _form(value: Any) -> str:
    if isinstance(value, Ulps) or (isinstance(value, dict) and "ulps" in value):
        return "Ulps"
    return "Near" if isinstance(value, dict | Near) else "name"


Tolerance = Annotated[
    Annotated[Literal["auto", "exact"], Tag("name")]
    | Annotated[Ulps, Tag("Ulps")]
    | Annotated[Near, Tag("Near")],
    Discriminator(_form),
]


class AnswersConfig(Slice):
    """The sample examples that every stage from `export` on asks about, and how equal answers must be."""

    samples: PositiveInt = 64
    """Number of examples of the sample split that are predicted at most."""

    batch_sizes: Annotated[tuple[BatchSize, ...], Field(min_length=1)] = (1, 2, 8, "all")
    """Batch sizes in which `estimator.predict` and every signature run over the samples."""

    tolerance: Tolerance = "auto"
    """How far an answer may lie from the expected one, wherever answers are compared. `auto`: the same bits
    under the conditions under which the model repeats itself bit for bit (machine, instruction set, batch
    size), and elsewhere within what rounding does to this model, measured each night. `exact`: the same bits
    everywhere. Or `{rtol: 1e-5}`, `{rtol: 1e-5, atol: 1e-8}`, `{ulps: 4}`."""

    outputs: dict[str, dict[str, Tolerance]] = {}
    """Tolerances of single outputs, by signature and output: `{predict: {logits: {rtol: 1e-4}}}`."""

    def sizes(self, samples: int) -> tuple[int, ...]:
        """Return the batch sizes for this number of samples, ascending; all of them are always one."""
        return tuple(sorted({min(size, samples) for size in self.batch_sizes if size != "all"} | {samples}))

    def tolerance_of(self, signature: str, output: str) -> Tolerance:
        """Return the tolerance of an output of a signature."""
        return self.outputs.get(signature, {}).get(output, self.tolerance)
