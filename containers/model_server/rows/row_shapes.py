"""Rules of ops that change or read shapes: Reshape, Tile, Fill, Range, Shape."""

from __future__ import annotations

from dataclasses import replace

from model_server.rows.row_nodes import Mixes, Node, Outputs, by_op, inner_axes
from model_server.rows.row_values import (
    ALIGNED,
    BATCH,
    CONSTANT,
    ONE,
    POSITIONS,
    ROW_NUMBERS,
    ROWS,
    Lead,
    Size,
    Value,
    aligned,
    product,
    sizes,
)


def _expand_dims(node: Node) -> Value:
    value = node.inputs[0]
    (axis,) = node.numbers(1)
    if value.kind != ROW_NUMBERS:
        value = node.aligned(0)
    rank = len(value.shape or ())
    (axis,) = inner_axes([axis], rank + 1)
    return aligned(value.lead, [*value.inner[: axis - 1], ONE, *value.inner[axis - 1 :]], value.kind)


def _squeeze(node: Node) -> Value:
    value, axes = node.inputs[0], node.integers("squeeze_dims")
    rank = len(value.shape or ())
    if value.kind not in (POSITIONS, ROW_NUMBERS):
        value = node.aligned(0)
    if not axes:
        raise Mixes  # of a batch of one row, the rows' dimension would go too
    axes = inner_axes(axes, rank)
    inner = [size for axis, size in enumerate(value.inner, 1) if axis not in axes]
    return replace(value, shape=(value.lead.size, *inner))


def _reshape(node: Node) -> Value:
    """Reshape that keeps the elements of a row together, in blocks along the first dimension."""
    value, target = node.inputs[0], list(node.sizes(1))
    if value.kind not in (ALIGNED, POSITIONS, ROW_NUMBERS) or value.pad is not None or not target:
        raise Mixes
    elements = value.lead.block.times(product(value.inner))  # of a row, or of an entry
    blanks = [axis for axis, size in enumerate(target) if size == Size(-1)]
    if len(blanks) > 1 or any(not size.is_fixed for size in target[1:]):
        raise Mixes
    if blanks == [0]:
        block = elements.over(product(target[1:]))
    elif value.lead.is_batch:
        block = target[0].over(ROWS)
    else:
        block = ONE if target[0] == value.lead.size else None
    if block is None or not block.is_fixed:
        raise Mixes
    if blanks and blanks != [0]:
        rest = elements.over(product([block, *(size for size in target[1:] if size != Size(-1))]))
        if rest is None:
            raise Mixes
        target[blanks[0]] = rest
    if block.times(product(target[1:])) != elements or not product([block, *target[1:]]).number:
        raise Mixes
    lead = value.lead
    if lead.is_batch:
        if value.kind == ROW_NUMBERS and block != elements:
            raise Mixes
        lead = lead._replace(block=block)
    elif block != ONE:
        raise Mixes
    return replace(value, shape=(lead.size, *target[1:]), lead=lead)


def _tile(node: Node) -> Value:
    value, multiples = node.inputs[0], node.sizes(1)
    shape = value.shape
    if shape is None or len(shape) != len(multiples) or not multiples:
        raise Mixes
    inner = [size.times(times) for size, times in zip(shape[1:], multiples[1:], strict=True)]
    if not all(size.is_fixed for size in inner):
        raise Mixes
    if value.kind == CONSTANT:
        block = shape[0].times(multiples[0]).over(ROWS)
        if block is None or multiples[0].over(ROWS) != ONE:
            raise Mixes
        return aligned(Lead(block=block), inner)
    if value.kind != ROW_NUMBERS:
        value = node.aligned(0)
    if multiples[0] != ONE:
        raise Mixes
    return aligned(value.lead, inner, value.kind)


def _filled(node: Node) -> Value:
    """Fill, BroadcastTo: a constant for each row; or a row in a larger shape of the same rank."""
    shape_at, value_at = (0, 1) if node.op == "Fill" else (1, 0)
    value, target = node.inputs[value_at], node.sizes(shape_at)
    if not target or any(not size.is_fixed for size in target[1:]) or value.shape is None:
        raise Mixes
    if value.kind == CONSTANT:
        block = target[0].over(ROWS)
        if block is None or (len(value.shape) == len(target) and value.shape[0] != ONE):
            raise Mixes
        return aligned(Lead(block=block), target[1:])
    value = node.aligned(value_at)
    if len(value.shape or ()) != len(target) or target[0] != value.lead.size:
        raise Mixes
    return aligned(value.lead, target[1:])


def _range(node: Node) -> Value:
    if node.sizes(0) != (Size(0),) or node.sizes(2) != (ONE,) or node.sizes(1) != (ROWS,):
        raise Mixes
    return aligned(BATCH, (), ROW_NUMBERS)


def _shape(node: Node) -> Outputs:
    if any(value.shape is None for value in node.inputs):
        raise Mixes
    return [sizes(value.shape or ()) for value in node.inputs]


def _size(node: Node) -> Value:
    return sizes([product(_known_shape(node))], ())


def _rank(node: Node) -> Value:
    return sizes([Size(len(_known_shape(node)))], ())


def _known_shape(node: Node) -> tuple[Size, ...]:
    if node.inputs[0].shape is None:
        raise Mixes
    return node.inputs[0].shape


RULES = by_op(
    ("Fill BroadcastTo", _filled),
    ("Shape ShapeN", _shape),
    ("ExpandDims", _expand_dims),
    ("Range", _range),
    ("Rank", _rank),
    ("Reshape", _reshape),
    ("Size", _size),
    ("Squeeze", _squeeze),
    ("Tile", _tile),
)
