"""What rules of row_rules.py get: an op with the values of its inputs; Mixes is what they raise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model_server.rows.row_values import ALIGNED, CONSTANT, Size, Value

MATRIX = 2
INTEGERS = (3, 9)  # DT_INT32, DT_INT64


class Mixes(Exception):
    """The op may let one row depend on another."""


@dataclass(frozen=True)
class Node:
    """An op with the values of its inputs; `name` is unique, also in a function that is called twice."""

    name: str
    op: str
    inputs: Sequence[Value]
    attributes: Mapping[str, Any]

    def integer(self, name: str, default: int = 0) -> int:
        """Return an attribute."""
        return int(self.attributes[name].i) if name in self.attributes else default

    def switch(self, name: str) -> bool:
        """Return an attribute; all that rules read are false by default."""
        return name in self.attributes and bool(self.attributes[name].b)

    def integers(self, name: str) -> list[int]:
        """Return an attribute."""
        return list(self.attributes[name].list.i) if name in self.attributes else []

    def text(self, name: str, default: str) -> str:
        """Return an attribute."""
        return self.attributes[name].s.decode() if name in self.attributes else default

    def aligned(self, index: int, rank: int | None = None) -> Value:
        """Return an input whose entries depend on their own row only, or raise Mixes."""
        value = self.inputs[index]
        if value.kind != ALIGNED or value.pad is not None or rank not in (None, len(value.shape or ())):
            raise Mixes
        return value

    def constant(self, index: int) -> Value:
        """Return an input that is the same in every run, or raise Mixes."""
        value = self.inputs[index]
        if value.kind != CONSTANT:
            raise Mixes
        return value

    def sizes(self, index: int) -> tuple[Size, ...]:
        """Return the known integers of an input, or raise Mixes."""
        elements = self.inputs[index].elements
        if elements is None or not all(isinstance(each, Size) for each in elements):
            raise Mixes
        return elements  # type: ignore[return-value]

    def numbers(self, index: int) -> tuple[int, ...]:
        """Return the known integers, none of them symbolic, of an input, or raise Mixes."""
        elements = self.sizes(index)
        if any(each.symbols for each in elements):
            raise Mixes
        return tuple(each.number for each in elements)

    def axes(self, index: int, rank: int) -> list[int]:
        """Return the axes that an input names, counted from the front, or raise Mixes if the first is one."""
        return inner_axes(self.numbers(index), rank)


Outputs = Value | Sequence[Value]
Rule = Callable[[Node], Outputs]


def inner_axes(axes: Sequence[int], rank: int) -> list[int]:
    """Return axes counted from the front, or raise Mixes if the first is one."""
    found = sorted({axis + rank if axis < 0 else axis for axis in axes})
    if any(not 0 < axis < rank for axis in found):
        raise Mixes
    return found


def number_of(value: Value) -> float | None:
    """Return the only element of a value, None if it isn't known."""
    if value.elements is None or len(value.elements) != 1:
        return None
    element = value.elements[0]
    return element.number if isinstance(element, Size) else element


def by_op(*rules: tuple[str, Rule]) -> dict[str, Rule]:
    """Return the rule of each op, by its name; `rules` have the names of ops separated by spaces."""
    return {op: rule for ops, rule in rules for op in ops.split()}
