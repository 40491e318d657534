"""What the analysis of row_independence.py knows of a tensor: which of its elements depend on which row.

A row is one example of a request. Sizes are symbolic, because the number of rows is not known at load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

_ROWS = "rows"
_VARIES = "~"
"""First character of the symbol of a size that depends on the rows of a batch."""


class Size(NamedTuple):
    """A dimension: a number times unknown sizes; one symbol stands for the number of rows in the batch."""

    number: int = 1
    symbols: tuple[str, ...] = ()

    @property
    def is_fixed(self) -> bool:
        """Whether it is the same for every batch."""
        return not any(symbol == _ROWS or symbol.startswith(_VARIES) for symbol in self.symbols)

    def times(self, other: Size) -> Size:
        """Return the product."""
        return Size(self.number * other.number, tuple(sorted(self.symbols + other.symbols)))

    def over(self, other: Size) -> Size | None:
        """Return the quotient, or None if it isn't known to be a whole number."""
        left = list(self.symbols)
        for symbol in other.symbols:
            if symbol not in left:
                return None
            left.remove(symbol)
        if not other.number or self.number % other.number:
            return None
        return Size(self.number // other.number, tuple(left))


ONE = Size()
ROWS = Size(1, (_ROWS,))


def unknown(name: str) -> Size:
    """Return a size that is not known, and the same for every batch."""
    return Size(1, ("?" + name,))


def varying(name: str) -> Size:
    """Return a size that depends on the rows of the batch."""
    return Size(1, (_VARIES + name,))


def product(sizes: Sequence[Size]) -> Size:
    """Return the product of all sizes."""
    result = ONE
    for size in sizes:
        result = result.times(size)
    return result


class Lead(NamedTuple):
    """What the first dimension of a tensor counts.

    The rows of the batch, `block` entries each, in order; or, with another name, the entries of one sparse
    tensor or the values of one Unique op.
    """

    name: str = _ROWS
    block: Size = ONE
    is_filled: bool = True
    """Whether every row has an entry, so that a segment op returns a result for each row."""

    @classmethod
    def entries(cls, name: str, *, is_filled: bool = False) -> Lead:
        """Return what counts the entries that an op has made, by the op's name."""
        return cls(f"entries of {name}", ONE, is_filled)

    @property
    def is_batch(self) -> bool:
        """Whether it counts rows, or blocks of rows."""
        return self.name == _ROWS

    @property
    def size(self) -> Size:
        """The size of the dimension."""
        return ROWS.times(self.block) if self.is_batch else varying(self.name)


BATCH = Lead()

# Kinds of tensors.
CONSTANT = "constant"  # the same in every run
SIZES = "sizes"  # integers that depend on the number of rows, of known form
ALIGNED = "aligned"  # an entry along the first dimension depends on the row that it belongs to only
INDICES = "indices"  # of a sparse tensor: the first column has the numbers of rows
ROW_IDS = "row_ids"  # that column
ROW_NUMBERS = "row_numbers"  # 0, 1, 2, …, each repeated for its block
POSITIONS = "positions"  # of those entries of `of` that a Where has selected
UNIQUE_INDEX = "unique_index"  # for each entry, its place in the values `of` a Unique
STACKED = "stacked"  # row numbers and aligned vectors along axis 0: transposed, they are INDICES
MIXED = "mixed"  # rows may depend on one another


@dataclass(frozen=True)
class Value:
    """A tensor. All kinds but CONSTANT, SIZES and MIXED have a known shape whose first size is the lead's."""

    kind: str
    shape: tuple[Size, ...] | None = None
    lead: Lead = BATCH
    elements: tuple[Size | float, ...] | None = None
    """Of a small CONSTANT, and of SIZES: the elements in row-major order, integers as Size."""
    pad: float | None = None
    """If dimension 1 is as long as the longest row needs, what fills the others up."""
    of: Lead = BATCH
    source: str = ""
    """Of a resource, the op that it comes from; of MIXED, the reason."""

    @property
    def inner(self) -> tuple[Size, ...]:
        """The shape without the first dimension."""
        return (self.shape or ())[1:]


def aligned(lead: Lead, inner: Sequence[Size], kind: str = ALIGNED, pad: float | None = None) -> Value:
    """Return a tensor with this lead and these further dimensions."""
    return Value(kind, (lead.size, *inner), lead, pad=pad)


def mixed(reason: str) -> Value:
    """Return a tensor whose rows may depend on one another."""
    return Value(MIXED, source=reason)


def sizes(elements: Sequence[Size | float], shape: Sequence[Size] | None = None) -> Value:
    """Return a tensor of known elements: constant if they are the same for every batch."""
    fixed = all(not isinstance(each, Size) or each.is_fixed for each in elements)
    given = tuple(shape) if shape is not None else (Size(len(elements)),)
    return Value(CONSTANT if fixed else SIZES, given, elements=tuple(elements))


def join(one: Value, other: Value, name: str) -> Value:
    """Return what holds for both: of a loop's rounds, or of the branches of a condition."""
    if one == other:
        return one
    if MIXED in (one.kind, other.kind):
        return one if one.kind == MIXED else other
    shape = None
    if one.shape is not None and other.shape is not None and len(one.shape) == len(other.shape):
        pairs = enumerate(zip(one.shape, other.shape, strict=True))
        shape = tuple(a if a == b else unknown(f"{name}:{i}") for i, (a, b) in pairs)
    if one.kind == other.kind == CONSTANT:
        return Value(CONSTANT, shape, source=one.source if one.source == other.source else "")
    is_padded = one.pad is not None or other.pad is not None
    if one.kind == other.kind == ALIGNED and one.lead == other.lead and shape and not is_padded:
        return Value(ALIGNED, shape, one.lead)
    return mixed(f"{name} is either of two tensors of different form")
