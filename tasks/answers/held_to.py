"""What one signature's answers are held to in one place: the same bits, or the tolerance, and why.

The same bits are due if the model repeats itself bit for bit and everything that decides rounding is alike:
conditions, batch, no other client's request in the same run of the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tasks.answers import comparison, numerics
from tasks.answers.comparison import Arrays, Comparison, Limit
from tasks.answers.limits import Limits
from tasks.core.artifacts import Check


@dataclass(frozen=True)
class HeldTo:
    """The limits of one signature, and whether the same bits are due."""

    limits: Mapping[str, Limit]
    bits: bool
    why: str
    """Why the same bits are, or are not, due."""

    @classmethod
    def of(cls, limits: Limits, signature: str, conditions: dict[str, str], *, alone: bool) -> HeldTo:
        """Return what answers given under `conditions` are held to; `alone`: no request shares its run."""
        mine = limits.of(signature)
        if not any(limit.repeats for limit in mine.values()):
            return cls(mine, False, "")
        if not numerics.alike(limits.conditions, conditions):
            return cls(mine, False, numerics.difference(limits.conditions, conditions))
        if not alone:
            return cls(mine, False, "requests may share a batch with other clients'")
        return cls(mine, True, "same conditions")

    def compare(
        self, expected: Arrays, observed: Arrays, *, alike: bool, place: str = "", first: int = 0
    ) -> Comparison:
        """Compare one request's answers; `alike` says that the expected ones are of the same batch.

        Not finite ones are a problem whatever was expected. `first` is the number of the first example.
        """
        wrong = comparison.not_finite(observed, place, first)
        if wrong.problem:
            return wrong
        return comparison.compare(
            expected, observed, self.limits, bits=self.bits and alike, place=place, first=first
        )

    def compare_served(
        self, expected: Arrays, served: Arrays, *, alike: bool, place: str = "", first: int = 0
    ) -> Comparison:
        """Compare what a server answered, in the form that its API gives the outputs.

        Classify of a head without classes (or scores) answers empty ones, which are not compared; Regress
        answers [n] for an output of [n, 1] (tf_serving.md, 1.5).
        """
        observed = {alias: array for alias, array in served.items() if alias in expected}
        for alias, array in observed.items():
            if expected[alias].shape == (*array.shape, 1):
                observed[alias] = array.reshape(expected[alias].shape)
        return self.compare(expected, observed, alike=alike, place=place, first=first)

    @property
    def limit(self) -> str:
        """The limit as a person reads it: that of the output that may differ most."""
        widest = max(
            self.limits.values(), key=lambda each: (each.rtol, each.ulps or 0), default=comparison.EXACT
        )
        return "same bits" if self.bits else str(widest)

    def check(self, name: str, expected: str, found: Comparison) -> Check:
        """Return the row that a person sees: the largest difference, the limit, and why it is this one."""
        rule = f"equals {expected}" + (f" ({self.why})" if self.why else "")
        return Check(name, rule, found.observed, self.limit, not found.problem)


def summary(found: Comparison, held_to: Iterable[HeldTo]) -> str:
    """Return in a few words how far all answers are from the expected ones, and how far they may be."""
    if found.same == found.numbers:
        return f"{found.numbers:,} numbers bit-equal"
    limits = sorted({each.limit for each in held_to})
    return f"{found.numbers:,} numbers {found.observed} (limit {', '.join(limits)})"
