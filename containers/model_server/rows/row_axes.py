"""Rules of ops along one axis or a few: reductions, Softmax, TopK, Concat, Pack, Split."""

from __future__ import annotations

from model_server.rows.row_nodes import MATRIX, Mixes, Node, Outputs, by_op, inner_axes
from model_server.rows.row_values import (
    ALIGNED,
    INDICES,
    ONE,
    ROW_NUMBERS,
    STACKED,
    Size,
    Value,
    aligned,
    unknown,
)


def _reduced(node: Node) -> Value:
    """Sum, Max and the like over axes that are not the first."""
    value = node.inputs[0]
    if value.pad is None:
        value = node.aligned(0)
    elif not (node.op == "Sum" and value.pad == 0):
        raise Mixes  # what fills short rows up would count
    rank = len(value.shape or ())
    axes = node.axes(1, rank)
    if value.pad is not None and 1 not in axes:
        raise Mixes
    keep = node.switch("keep_dims")
    shape = value.shape or ()
    inner = [ONE if axis in axes else shape[axis] for axis in range(1, rank) if keep or axis not in axes]
    return aligned(value.lead, inner)


def _arg_reduced(node: Node) -> Value:
    value = node.aligned(0)
    (axis,) = node.axes(1, len(value.shape or ()))
    return aligned(value.lead, value.inner[: axis - 1] + value.inner[axis:])


def _last_axis(node: Node) -> Value:
    """Softmax and the like: over the last axis."""
    value = node.aligned(0)
    if len(value.shape or ()) < MATRIX:
        raise Mixes
    return value


def _top_k(node: Node) -> Outputs:
    value = _last_axis(node)
    if len(node.inputs) > 1:
        (count,) = node.sizes(1)
    else:
        count = Size(node.integer("k"))
    if not count.is_fixed:
        raise Mixes
    return [aligned(value.lead, [*value.inner[:-1], count])] * 2


def _along_axes(node: Node) -> Value:
    """Cumsum, Reverse and the like: along axes that are not the first."""
    value = node.aligned(0)
    node.axes(1, len(value.shape or ()))
    return value


def _concat(node: Node) -> Value:
    axis_at = 0 if node.op == "Concat" else len(node.inputs) - 1
    (axis,) = node.numbers(axis_at)
    parts = [index for index in range(len(node.inputs)) if index != axis_at]
    values = [node.inputs[index] for index in parts]
    rank = len(values[0].shape or ())
    (axis,) = inner_axes([axis], rank)
    kind = ALIGNED
    if values[0].kind == INDICES:  # further columns of the indices of a sparse tensor
        kind, parts = INDICES, parts[1:]
    for index in parts:
        node.aligned(index, rank)
    if any(value.lead != values[0].lead for value in values):
        raise Mixes
    inner = list(values[0].inner)
    along = [value.inner[axis - 1] for value in values]
    if any(size.symbols for size in along):
        inner[axis - 1] = unknown(node.name) if len(along) > 1 else along[0]
    else:
        inner[axis - 1] = Size(sum(size.number for size in along))
    return aligned(values[0].lead, inner, kind)


def _pack(node: Node) -> Value:
    values = node.inputs
    axis = node.integer("axis")
    rank = len(values[0].shape or ())
    if any(value.lead != values[0].lead for value in values):
        raise Mixes
    if values[0].kind == ROW_NUMBERS and axis in (0, -2) and rank == 1:
        for index in range(1, len(values)):
            node.aligned(index, 1)
        return Value(STACKED, (Size(len(values)), values[0].lead.size), values[0].lead)
    (axis,) = inner_axes([axis], rank + 1)
    for index in range(len(values)):
        node.aligned(index, rank)
    inner = list(values[0].inner)
    inner.insert(axis - 1, Size(len(values)))
    return aligned(values[0].lead, inner)


def _unpack(node: Node) -> Outputs:
    value = node.aligned(0)
    (axis,) = inner_axes([node.integer("axis")], len(value.shape or ()))
    return [aligned(value.lead, value.inner[: axis - 1] + value.inner[axis:])] * node.integer("num")


def _split(node: Node) -> Outputs:
    value_at, axis_at = (1, 0) if node.op == "Split" else (0, 2)
    value, count = node.aligned(value_at), node.integer("num_split")
    (axis,) = node.axes(axis_at, len(value.shape or ()))
    given: list[Size] | None = None
    if node.op == "SplitV":
        given = list(node.sizes(1))
    elif not value.inner[axis - 1].symbols:
        given = [Size(value.inner[axis - 1].number // count)] * count
    if given is None or any(size.symbols or size.number < 0 for size in given):
        given = [unknown(f"{node.name}:{index}") for index in range(count)]
    return [aligned(value.lead, [*value.inner[: axis - 1], size, *value.inner[axis:]]) for size in given]


RULES = by_op(
    ("Sum Mean Max Min Prod Any All EuclideanNorm", _reduced),
    ("ArgMax ArgMin", _arg_reduced),
    ("Softmax LogSoftmax", _last_axis),
    ("TopK TopKV2", _top_k),
    ("Cumsum Cumprod ReverseV2", _along_axes),
    ("Concat ConcatV2", _concat),
    ("Split SplitV", _split),
    ("Pack", _pack),
    ("Unpack", _unpack),
)
