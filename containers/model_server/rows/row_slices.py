"""Rules of ops that choose or move elements: Gather, OneHot, slices, Pad, Transpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model_server.rows.row_nodes import MATRIX, Mixes, Node, by_op, inner_axes, number_of
from model_server.rows.row_values import (
    ALIGNED,
    BATCH,
    CONSTANT,
    INDICES,
    ONE,
    POSITIONS,
    ROW_IDS,
    STACKED,
    UNIQUE_INDEX,
    Size,
    Value,
    aligned,
    unknown,
)


def _gather(node: Node) -> Value:
    params, indices = node.inputs[0], node.inputs[1]
    axis = node.numbers(2)[0] if len(node.inputs) > MATRIX else 0
    batch_dims = node.integer("batch_dims")
    if indices.kind == POSITIONS and params.lead == indices.of and len(indices.shape or ()) == 1:
        if axis or params.kind not in (ALIGNED, INDICES, ROW_IDS) or params.pad is not None:
            raise Mixes
        return aligned(indices.lead, params.inner, params.kind)
    if indices.kind == UNIQUE_INDEX and params.lead == indices.of and params.kind == ALIGNED and not axis:
        return aligned(indices.lead, (*indices.inner, *params.inner))
    if params.kind == CONSTANT:  # an embedding table
        if axis or batch_dims or params.shape is None:
            raise Mixes
        indices = node.aligned(1)
        return aligned(indices.lead, (*indices.inner, *params.shape[1:]))
    params, rank = node.aligned(0), len(params.shape or ())
    (axis,) = inner_axes([axis], rank)
    if indices.kind == CONSTANT:
        if batch_dims or indices.shape is None:
            raise Mixes
        return aligned(params.lead, (*params.inner[: axis - 1], *indices.shape, *params.inner[axis:]))
    indices = node.aligned(1)
    if indices.lead != params.lead or not 0 < batch_dims <= axis:
        raise Mixes
    taken = (indices.shape or ())[batch_dims:]
    return aligned(params.lead, (*params.inner[: axis - 1], *taken, *params.inner[axis:]))


def _gather_nd(node: Node) -> Value:
    params, indices = node.inputs
    if indices.kind == POSITIONS and params.lead == indices.of and params.kind == ALIGNED:
        return aligned(indices.lead, node.aligned(0).inner)
    if indices.shape is None or len(indices.shape) != MATRIX or params.shape is None:
        raise Mixes
    columns = indices.shape[1]
    if columns.symbols or not 0 < columns.number <= len(params.shape):
        raise Mixes
    if params.kind == CONSTANT:
        indices = node.aligned(1)
    elif indices.kind != INDICES or node.aligned(0).lead != BATCH:
        raise Mixes
    return aligned(indices.lead, params.shape[columns.number :])


def _one_hot(node: Node) -> Value:
    value = node.inputs[0]
    (depth,) = node.sizes(1)
    on, off = node.constant(2), node.constant(3)
    pad = value.pad
    if value.kind != ALIGNED or not depth.is_fixed or on.shape != () or off.shape != ():
        raise Mixes
    rank = len(value.shape or ())
    axis = node.integer("axis", -1)
    axis = rank if axis == -1 else axis
    if axis < 1 or (pad is not None and (axis != rank or pad >= 0 or number_of(off) != 0)):
        raise Mixes
    inner = [*value.inner[: axis - 1], depth, *value.inner[axis - 1 :]]
    return aligned(value.lead, inner, pad=None if pad is None else 0)


@dataclass(frozen=True)
class _Part:
    """What a StridedSlice does to an axis, None if it is new; `place` is its place in begin and end."""

    axis: int | None
    place: int = -1
    shrinks: bool = False
    is_whole: bool = True


def _parts(node: Node, shape: Sequence[Size]) -> list[_Part]:
    begin, end, strides = node.sizes(1), node.sizes(2), node.numbers(3)
    parts: list[_Part] = []
    axis = 0
    for place in range(len(begin)):
        bit = 1 << place
        if node.integer("ellipsis_mask") & bit:
            later = range(place + 1, len(begin))
            passed = (
                len(shape) - axis - sum(not node.integer("new_axis_mask") & (1 << each) for each in later)
            )
            parts += [_Part(each) for each in range(axis, axis + passed)]
            axis += passed
        elif node.integer("new_axis_mask") & bit:
            parts.append(_Part(None))
        else:
            from_start = node.integer("begin_mask") & bit or begin[place] == Size(0)
            to_end = node.integer("end_mask") & bit or end[place] == shape[axis]
            is_whole = bool(from_start and to_end and strides[place] == 1)
            parts.append(_Part(axis, place, bool(node.integer("shrink_axis_mask") & bit), is_whole))
            axis += 1
    return parts + [_Part(each) for each in range(axis, len(shape))]


def sliced_shape(node: Node, shape: Sequence[Size]) -> list[Size]:
    """Return the shape that a StridedSlice of a tensor has."""
    result = []
    for part in _parts(node, shape):
        if part.axis is None:
            result.append(ONE)
        elif not part.shrinks:
            size = shape[part.axis]
            result.append(size if part.is_whole else _length(node, part.place, size, part.axis))
    return result


def _strided_slice(node: Node) -> Value:
    """StridedSlice of all along the first axis."""
    value = node.inputs[0]
    if value.shape is None or value.kind not in (ALIGNED, INDICES) or value.pad is not None:
        raise Mixes
    parts = _parts(node, value.shape)
    if parts[0].axis != 0 or parts[0].shrinks or not parts[0].is_whole:
        raise Mixes
    inner = sliced_shape(node, value.shape)[1:]
    if value.kind == ALIGNED:
        return aligned(value.lead, inner)
    if any(part.axis is None for part in parts):
        raise Mixes
    columns = parts[1]
    if columns.is_whole and not columns.shrinks:
        return value
    begins = Size(0) if node.integer("begin_mask") & (1 << columns.place) else node.sizes(1)[columns.place]
    if begins.symbols or node.numbers(3)[columns.place] != 1:
        raise Mixes
    return _columns(value, begins.number, inner)


def _columns(value: Value, first: int, inner: Sequence[Size]) -> Value:
    """Return columns of the indices of a sparse tensor: only the first has the numbers of rows."""
    if first < 0:
        raise Mixes
    if first:
        return aligned(value.lead, inner)
    return aligned(value.lead, inner, INDICES if inner else ROW_IDS)


def _length(node: Node, place: int, size: Size, axis: int) -> Size:
    """Return how many of `size` elements a slice keeps."""
    begin, end, stride = node.sizes(1)[place], node.sizes(2)[place], node.numbers(3)[place]
    if not (begin.is_fixed and end.is_fixed):
        raise Mixes
    if size.symbols or begin.symbols or end.symbols:
        return unknown(f"{node.name}:{axis}")
    bit = 1 << place
    first = None if node.integer("begin_mask") & bit else begin.number
    last = None if node.integer("end_mask") & bit else end.number
    return Size(len(range(size.number)[first:last:stride]))


def _slice(node: Node) -> Value:
    value, begin, size = node.inputs[0], node.numbers(1), node.sizes(2)
    value = node.aligned(0) if value.kind != INDICES else value
    if begin[0] or size[0] not in (Size(-1), value.lead.size):
        raise Mixes
    inner = []
    for axis, (whole, start, length) in enumerate(zip(value.inner, begin[1:], size[1:], strict=True)):
        if length != Size(-1):
            inner.append(length)
        elif start and not whole.symbols:
            inner.append(Size(whole.number - start))
        else:
            inner.append(whole if not start else unknown(f"{node.name}:{axis}"))
    if not all(each.is_fixed for each in inner):
        raise Mixes
    return _columns(value, begin[1], inner) if value.kind == INDICES else aligned(value.lead, inner)


def _padded(node: Node) -> Value:
    """Pad and the like, of dimensions that are not the first."""
    value, paddings = node.aligned(0), node.numbers(1)
    if len(node.inputs) > MATRIX:
        node.constant(2)
    if any(paddings[:2]) or len(paddings) != 2 * len(value.shape or ()):
        raise Mixes
    inner = [
        Size(size.number + sum(paddings[2 * axis : 2 * axis + 2]))
        if not size.symbols
        else unknown(f"{node.name}:{axis}")
        for axis, size in enumerate(value.inner, 1)
    ]
    return aligned(value.lead, inner)


def _transpose(node: Node) -> Value:
    value, order = node.inputs[0], node.numbers(1)
    if value.kind == STACKED and order == (1, 0):
        return aligned(value.lead, (value.shape or ())[:1], INDICES)
    value = node.aligned(0)
    shape = value.shape or ()
    if not order or order[0] or len(order) != len(shape):
        raise Mixes
    return aligned(value.lead, [shape[axis] for axis in order[1:]])


RULES = by_op(
    ("Gather GatherV2 ResourceGather", _gather),
    ("Pad PadV2 MirrorPad", _padded),
    ("GatherNd", _gather_nd),
    ("OneHot", _one_hot),
    ("Slice", _slice),
    ("StridedSlice", _strided_slice),
    ("Transpose", _transpose),
)
