"""For each op that keeps rows apart, what its outputs depend on, by the values of its inputs.

A rule returns the outputs (a list) or the only one; Mixes means that rows may depend on one another. An op
that is not in RULES mixes, unless all of its inputs are constant and it has no state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from model_server import row_values
from model_server.row_values import (
    ALIGNED,
    BATCH,
    CONSTANT,
    INDICES,
    ONE,
    POSITIONS,
    ROW_IDS,
    ROW_NUMBERS,
    ROWS,
    STACKED,
    UNIQUE_INDEX,
    Lead,
    Size,
    Value,
    aligned,
    product,
    sizes,
    unknown,
    varying,
)

_MATRIX = 2
INTEGERS = (3, 9)  # DT_INT32, DT_INT64
_IMAGES = 4


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
        return _inner_axes(self.numbers(index), rank)


Outputs = Value | Sequence[Value]
Rule = Callable[[Node], Outputs]


def _inner_axes(axes: Sequence[int], rank: int) -> list[int]:
    found = sorted({axis + rank if axis < 0 else axis for axis in axes})
    if any(not 0 < axis < rank for axis in found):
        raise Mixes
    return found


def _same(node: Node) -> Outputs:
    return list(node.inputs)


def _cast(node: Node) -> Value:
    value = node.inputs[0]
    is_integer = node.attributes["DstT"].type in INTEGERS
    if (value.kind != ALIGNED and not is_integer) or (value.pad is not None and not is_integer):
        raise Mixes
    return value


def _elementwise(node: Node) -> Value:
    """Broadcast over the inner dimensions."""
    return _broadcast(node, range(len(node.inputs)))


def _broadcast(node: Node, indices: Sequence[int]) -> Value:
    values = [node.inputs[index] for index in indices]
    rows = [node.aligned(index) for index in indices if node.inputs[index].kind != CONSTANT]
    if not rows:
        raise Mixes
    lead, rank = rows[0].lead, len(rows[0].shape or ())
    shapes = []
    for value in values:
        shape = value.shape
        if shape is None or len(shape) > rank or (value.kind == ALIGNED and value.lead != lead):
            raise Mixes
        if value.kind == ALIGNED and len(shape) != rank:
            raise Mixes  # a vector of rows would be a row's columns
        if value.kind == CONSTANT and len(shape) == rank and shape[0] != ONE:
            raise Mixes
        shapes.append(shape)
    return aligned(lead, broadcast(node.name, [s[1:] if len(s) == rank else s for s in shapes], rank - 1))


def broadcast(name: str, shapes: Sequence[Sequence[Size]], rank: int) -> list[Size]:
    """Return the shape that shapes are broadcast to."""
    result = []
    for axis in range(rank):
        found = {shape[axis - rank] for shape in shapes if rank - axis <= len(shape)} - {ONE}
        known = [size for size in found if not size.symbols]
        if known:
            result.append(known[0])
        elif len(found) > 1:
            result.append(unknown(f"{name}:{axis}"))
        else:
            result.append(found.pop() if found else ONE)
    return result


def _select(node: Node) -> Value:
    """Select: the condition may be a vector with an element for each row."""
    condition = node.inputs[0]
    if condition.kind == CONSTANT:
        if condition.shape != ():
            raise Mixes
        return _broadcast(node, (1, 2))
    condition, then, otherwise = node.aligned(0), node.aligned(1), node.aligned(2)
    if not condition.lead == then.lead == otherwise.lead or len(then.inner) != len(otherwise.inner):
        raise Mixes
    if condition.inner and len(condition.inner) != len(then.inner):
        raise Mixes
    return aligned(then.lead, then.inner)


def _bias_add(node: Node) -> Value:
    value = node.aligned(0)
    node.constant(1)
    if len(value.shape or ()) < _MATRIX:
        raise Mixes
    return value


def _first_row_wise(node: Node) -> Value:
    """Return the first input's rows; the other inputs have to be constant."""
    for index in range(1, len(node.inputs)):
        node.constant(index)
    return node.aligned(0)


def _table_find(node: Node) -> Value:
    """Look-ups of keys; the tables in RULES have a scalar as the value of each key."""
    if node.constant(0).source not in _TABLES.split():
        raise Mixes
    node.constant(2)
    return node.aligned(1)


def _matmul(node: Node) -> Value:
    value, weights = node.aligned(0, _MATRIX), node.constant(1)
    if node.switch("transpose_a") or weights.shape is None or len(weights.shape) != _MATRIX:
        raise Mixes
    return aligned(value.lead, [weights.shape[0 if node.switch("transpose_b") else 1]])


def _batch_matmul(node: Node) -> Value:
    """Of matrices along the first dimension, or of those with one constant matrix."""
    one, other = node.inputs
    rows = one if one.kind == ALIGNED else other
    rank = len(rows.shape or ())
    leads = [node.aligned(i).lead for i, value in enumerate(node.inputs) if value.kind != CONSTANT]
    if not leads or leads.count(leads[0]) != len(leads) or rank <= _MATRIX:
        raise Mixes
    for value in (one, other):
        shape = value.shape
        if shape is None or len(shape) < _MATRIX or len(shape) > rank:
            raise Mixes
        if value.kind == ALIGNED and len(shape) != rank:
            raise Mixes
        if value.kind == CONSTANT and len(shape) == rank and shape[0] != ONE:
            raise Mixes
    left = one.shape[-1 if node.switch("adj_x") else -2]  # type: ignore[index]
    right = other.shape[-2 if node.switch("adj_y") else -1]  # type: ignore[index]
    between = [(v.shape or ())[1 if len(v.shape or ()) == rank else 0 : -2] for v in (one, other)]
    return aligned(leads[0], [*broadcast(node.name, between, rank - 3), left, right])


def _einsum(node: Node) -> Value:
    """Einsum whose first label stands for the rows, and for nothing else."""
    equation = node.text("equation", "").replace(" ", "")
    if "." in equation or "->" not in equation:
        raise Mixes
    left, result = equation.split("->")
    terms = left.split(",")
    known: dict[str, Size] = {}
    for term, value in zip(terms, node.inputs, strict=True):
        if value.shape is None or len(value.shape) != len(term):
            raise Mixes
        known.update(zip(term, value.shape, strict=True))
    rows = [index for index, value in enumerate(node.inputs) if value.kind != CONSTANT]
    label, lead = terms[rows[0]][:1], node.aligned(rows[0]).lead
    if result[:1] != label or result.count(label) != 1:
        raise Mixes
    for index, term in enumerate(terms):
        if index not in rows and label in term:
            raise Mixes
        if index in rows and (term.find(label) or term.count(label) != 1 or node.aligned(index).lead != lead):
            raise Mixes
    return aligned(lead, [known[each] for each in result[1:]])


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
    if len(value.shape or ()) < _MATRIX:
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
    (axis,) = _inner_axes([axis], rank)
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
    (axis,) = _inner_axes([axis], rank + 1)
    for index in range(len(values)):
        node.aligned(index, rank)
    inner = list(values[0].inner)
    inner.insert(axis - 1, Size(len(values)))
    return aligned(values[0].lead, inner)


def _unpack(node: Node) -> Outputs:
    value = node.aligned(0)
    (axis,) = _inner_axes([node.integer("axis")], len(value.shape or ()))
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


def _expand_dims(node: Node) -> Value:
    value = node.inputs[0]
    (axis,) = node.numbers(1)
    if value.kind != ROW_NUMBERS:
        value = node.aligned(0)
    rank = len(value.shape or ())
    (axis,) = _inner_axes([axis], rank + 1)
    return aligned(value.lead, [*value.inner[: axis - 1], ONE, *value.inner[axis - 1 :]], value.kind)


def _squeeze(node: Node) -> Value:
    value, axes = node.inputs[0], node.integers("squeeze_dims")
    rank = len(value.shape or ())
    if value.kind not in (POSITIONS, ROW_NUMBERS):
        value = node.aligned(0)
    if not axes:
        raise Mixes  # of a batch of one row, the rows' dimension would go too
    axes = _inner_axes(axes, rank)
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


def _gather(node: Node) -> Value:
    params, indices = node.inputs[0], node.inputs[1]
    axis = node.numbers(2)[0] if len(node.inputs) > _MATRIX else 0
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
    (axis,) = _inner_axes([axis], rank)
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
    if indices.shape is None or len(indices.shape) != _MATRIX or params.shape is None:
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
    if axis < 1 or (pad is not None and (axis != rank or pad >= 0 or _number(off) != 0)):
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
    if len(node.inputs) > _MATRIX:
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


def _convolved(node: Node) -> Value:
    """Conv2D and the like: images along the first dimension, constant filters."""
    value, filters = node.aligned(0, _IMAGES), node.constant(1).shape
    if filters is None or len(filters) != _IMAGES:
        raise Mixes
    depth = filters[3] if node.op == "Conv2D" else filters[2].times(filters[3])
    return _windows(node, value, filters[:2], depth)


def _pooled(node: Node) -> Value:
    value, sides = node.aligned(0, _IMAGES), node.integers("ksize")
    channels_first = node.text("data_format", "NHWC") == "NCHW"
    at = 2 if channels_first else 1
    if len(sides) != _IMAGES or sides[0] != 1 or sides[1 if channels_first else 3] != 1:
        raise Mixes
    depth = (value.shape or ())[1 if channels_first else 3]
    return _windows(node, value, [Size(each) for each in sides[at : at + 2]], depth)


def _windows(node: Node, value: Value, sides: Sequence[Size], depth: Size) -> Value:
    layout = node.text("data_format", "NHWC")
    if layout not in ("NHWC", "NCHW"):
        raise Mixes
    at = 1 if layout == "NHWC" else 2
    strides = node.integers("strides")
    dilations = node.integers("dilations") or [1] * _IMAGES
    if strides[0] != 1 or dilations[0] != 1:
        raise Mixes
    spatial = []
    for place in (0, 1):
        size, side, stride = (value.shape or ())[at + place], sides[place], strides[at + place]
        reach = (side.number - 1) * dilations[at + place] + 1
        padding = node.text("padding", "")
        if size.symbols or side.symbols or padding not in ("SAME", "VALID"):
            spatial.append(unknown(f"{node.name}:{place}"))
        else:
            places = size.number if padding == "SAME" else size.number - reach + 1
            spatial.append(Size(-(-places // stride)))
    return aligned(value.lead, [*spatial, depth] if at == 1 else [depth, *spatial])


def _batch_norm(node: Node) -> Outputs:
    """FusedBatchNorm with given statistics; in training mode they are the batch's."""
    value = node.aligned(0, _IMAGES)
    is_training = node.switch("is_training") if "is_training" in node.attributes else True
    if is_training:
        raise Mixes
    for index in range(1, 5):
        node.constant(index)
    return [value, *[Value(CONSTANT)] * 5]


def _resized(node: Node) -> Value:
    value, target = node.aligned(0, _IMAGES), node.sizes(1)
    if not all(size.is_fixed for size in target):
        raise Mixes
    return aligned(value.lead, [*target, value.inner[2]])


def _decoded_raw(node: Node) -> Value:
    value = node.aligned(0)
    return aligned(value.lead, [*value.inner, unknown(node.name)])


def _decoded_csv(node: Node) -> Outputs:
    for index in range(1, len(node.inputs)):
        node.constant(index)
    return [node.aligned(0)] * (len(node.inputs) - 1)


def _parsed(node: Node) -> Outputs:
    """ParseExample: a sparse tensor for each sparse feature, rows for each dense feature of a fixed shape."""
    if node.aligned(0, 1).lead != BATCH:
        raise Mixes
    for index in range(1, len(node.inputs)):
        node.constant(index)
    sparse = len(node.attributes["sparse_types"].list.type)
    leads = [Lead.entries(f"{node.name}:{index}") for index in range(sparse)]
    outputs = [aligned(lead, [Size(2)], INDICES) for lead in leads]
    outputs += [aligned(lead, ()) for lead in leads]
    outputs += [sizes([ROWS, varying(f"{lead.name}:longest")]) for lead in leads]
    for shape in node.attributes["dense_shapes"].list.shape:
        if any(dim.size < 0 for dim in shape.dim) or shape.unknown_rank:
            # Short rows are filled up to the longest of the batch.
            outputs.append(row_values.mixed(f"{node.op} {node.name}, padded to the longest row"))
        else:
            outputs.append(aligned(BATCH, [Size(dim.size) for dim in shape.dim]))
    if node.op == "ParseExampleV2":
        ragged = len(node.attributes["ragged_value_types"].list.type)
        outputs += [row_values.mixed(f"{node.op} {node.name}, a ragged feature")] * (2 * ragged)
    return outputs


def _where(node: Node) -> Value:
    """Where: of a vector the positions that it selects, else the indices of a sparse tensor."""
    condition = node.aligned(0)
    lead = Lead.entries(node.name)
    if not condition.inner:
        return Value(POSITIONS, (lead.size, ONE), lead, of=condition.lead)
    if condition.lead != BATCH:
        raise Mixes
    return aligned(lead, [Size(len(condition.shape or ()))], INDICES)


def _unique(node: Node) -> Outputs:
    value = node.aligned(0, 1)
    if len(node.inputs) > 1 and node.numbers(1):
        raise Mixes
    lead = Lead.entries(node.name)
    return [aligned(lead, ()), Value(UNIQUE_INDEX, value.shape, value.lead, of=lead)]


def _sparse(node: Node, indices_at: int, values_at: int, shape_at: int) -> tuple[Lead, tuple[Size, ...]]:
    """Return lead and dense shape of a sparse tensor with a row for each row, or raise Mixes."""
    indices, shape = node.inputs[indices_at], node.sizes(shape_at)
    if indices.kind != INDICES or not shape or shape[0] != ROWS:
        raise Mixes
    if indices.shape != (indices.lead.size, Size(len(shape))):
        raise Mixes
    value = node.inputs[values_at]
    if value.kind != CONSTANT and node.aligned(values_at).lead != indices.lead:
        raise Mixes
    return indices.lead, shape


def _sparse_to_dense(node: Node) -> Value:
    """SparseToDense, ScatterNd."""
    if node.op == "ScatterNd":
        _, shape = _sparse(node, 0, 1, 2)
        filling: float | None = 0
    else:
        _, shape = _sparse(node, 0, 2, 1)
        filling = _number(node.constant(3))
    if all(size.is_fixed for size in shape[1:]):
        return aligned(BATCH, shape[1:])
    if len(shape) != _MATRIX or filling is None:
        raise Mixes
    return aligned(BATCH, shape[1:], pad=filling)


def _number(value: Value) -> float | None:
    if value.elements is None or len(value.elements) != 1:
        return None
    element = value.elements[0]
    return element.number if isinstance(element, Size) else element


def _sparse_reshape(node: Node) -> Outputs:
    """SparseReshape that leaves each entry in its row."""
    indices, shape, target = node.inputs[0], node.sizes(1), node.sizes(2)
    if indices.kind != INDICES or not shape or shape[0] != ROWS or not target or target[0] != ROWS:
        raise Mixes
    if Size(-1) in target:
        rest = [size for size in target[1:] if size != Size(-1)]
        blank = product(shape[1:]).over(product(rest)) or varying(node.name)
        target = tuple(blank if size == Size(-1) else size for size in target)
    return [aligned(indices.lead, [Size(len(target))], INDICES), sizes(target)]


def _fill_empty_rows(node: Node) -> Outputs:
    _, shape = _sparse(node, 0, 1, 2)
    node.constant(3)
    lead = Lead.entries(node.name, is_filled=True)
    return [
        aligned(lead, [Size(len(shape))], INDICES),
        aligned(lead, ()),
        aligned(BATCH, ()),
        row_values.mixed(f"{node.op} {node.name}, reverse_index_map"),
    ]


def _sparse_regrouped(node: Node) -> Outputs:
    """SparseSlice from the origin, SparseReorder: other entries, none in another row."""
    lead, shape = _sparse(node, 0, 1, 2)
    if node.op == "SparseSlice":
        size = node.sizes(4)
        if any(node.numbers(3)) or size[0] != ROWS:
            raise Mixes
        shape = tuple(a if a == b else varying(f"{node.name}:{a}") for a, b in zip(shape, size, strict=True))
    new = Lead.entries(node.name, is_filled=lead.is_filled and node.op == "SparseReorder")
    outputs = [aligned(new, [Size(len(shape))], INDICES), aligned(new, ())]
    return [*outputs, sizes(shape)] if node.op == "SparseSlice" else outputs


def _sparse_cross(node: Node) -> Outputs:
    count = node.integer("N")
    dense = range(3 * count, len(node.inputs))
    for index in range(count):
        _sparse(node, index, count + index, 2 * count + index)
    for index in dense:
        if node.inputs[index].kind == CONSTANT and node.op != "SparseCross":
            continue  # num_buckets, strong_hash, salt, separator
        if node.aligned(index, _MATRIX).lead != BATCH:
            raise Mixes
    lead = Lead.entries(node.name)
    shape = sizes([ROWS, varying(f"{node.name}:longest")])
    return [aligned(lead, [Size(2)], INDICES), aligned(lead, ()), shape]


def _segments(node: Node) -> Value:
    """SegmentSum and the like, by the rows of a sparse tensor each of whose rows has an entry."""
    value, ids = node.aligned(0), node.inputs[1]
    if ids.kind != ROW_IDS or ids.lead != value.lead or not ids.lead.is_filled:
        raise Mixes
    return aligned(BATCH, value.inner)


def _unsorted_segments(node: Node) -> Value:
    value, ids = node.aligned(0), node.inputs[1]
    if ids.kind != ROW_IDS or ids.lead != value.lead or node.sizes(2) != (ROWS,):
        raise Mixes
    return aligned(BATCH, value.inner)


def _sparse_segments(node: Node) -> Value:
    """SparseSegmentSum and the like: of embeddings, chosen by the values of a sparse tensor."""
    data, indices, ids = node.inputs[:3]
    if ids.kind != ROW_IDS or indices.lead != ids.lead or data.shape is None or len(indices.shape or ()) != 1:
        raise Mixes
    if "WithNumSegments" in node.op:
        if node.sizes(3) != (ROWS,):
            raise Mixes
    elif not ids.lead.is_filled:
        raise Mixes
    by_value = data.kind == CONSTANT and indices.kind == ALIGNED
    unique = data.kind == ALIGNED and indices.kind == UNIQUE_INDEX and data.lead == indices.of
    if not (by_value or unique):
        raise Mixes
    return aligned(BATCH, data.shape[1:])


def _sparse_matmul(node: Node) -> Value:
    _sparse(node, 0, 1, 2)
    dense = node.constant(3).shape
    if node.switch("adjoint_a") or dense is None or len(dense) != _MATRIX:
        raise Mixes
    return aligned(BATCH, [dense[0 if node.switch("adjoint_b") else 1]])


def _boosted_trees(node: Node) -> Value:
    node.constant(0)
    for index in range(1, len(node.inputs)):
        if node.aligned(index).lead != BATCH:
            raise Mixes
    return aligned(BATCH, [Size(node.integer("logits_dimension"))])


def _variable(node: Node) -> Value:
    return _with_shape(node, "shape")


def _with_shape(node: Node, name: str) -> Value:
    shape = node.attributes[name].shape if name in node.attributes else None
    if shape is None or shape.unknown_rank:
        return Value(CONSTANT, source=node.op)
    dims = [
        unknown(f"{node.name}:{axis}") if d.size < 0 else Size(d.size) for axis, d in enumerate(shape.dim)
    ]
    return Value(CONSTANT, tuple(dims), source=node.op)


def _table(node: Node) -> Value:
    return Value(CONSTANT, (), source=node.op)


def _read_variable(node: Node) -> Value:
    return replace(node.constant(0), source="")


_TABLES = "HashTable HashTableV2 MutableHashTable MutableHashTableV2"

UNARY = """
Abs Acos Acosh AsString Asin Asinh Atan Atanh BesselI0e BesselI1e Bucketize Ceil CheckNumerics Cos Cosh
DecodeBase64 Digamma Elu EncodeBase64 Erf Erfc Exp Expm1 Floor Inv Invert IsFinite IsInf IsNan LeakyRelu
Lgamma Log Log1p LogicalNot Ndtri Neg OnesLike Reciprocal Relu Relu6 Rint Round Rsqrt Selu Sigmoid Sign Sin
Sinh Softplus Softsign Sqrt Square StaticRegexFullMatch StaticRegexReplace StringLength StringLower
StringStrip StringToHashBucket StringToHashBucketFast StringToHashBucketStrong StringToNumber StringUpper
Tan Tanh ZerosLike
"""
BROADCASTING = """
Add AddN AddV2 Atan2 BitwiseAnd BitwiseOr BitwiseXor ClipByValue Div DivNoNan Equal FloorDiv FloorMod
Greater GreaterEqual Igamma Igammac Less LessEqual LogicalAnd LogicalOr Maximum Minimum Mod Mul MulNoNan
NextAfter NotEqual Pow RealDiv SelectV2 SquaredDifference StringJoin Sub Substr TruncateDiv TruncateMod
Xdivy Xlog1py Xlogy Zeta
"""

_OPS_BY_RULE: tuple[tuple[str, Rule], ...] = (
    (UNARY, lambda node: node.aligned(0)),
    (BROADCASTING, _elementwise),
    (
        "Identity IdentityN StopGradient PreventGradient Snapshot EnsureShape Enter RefEnter Exit "
        "RefExit NextIteration RefNextIteration RefIdentity LoopCond",
        _same,
    ),
    ("Sum Mean Max Min Prod Any All EuclideanNorm", _reduced),
    ("ArgMax ArgMin", _arg_reduced),
    ("Softmax LogSoftmax", _last_axis),
    ("TopK TopKV2", _top_k),
    ("Cumsum Cumprod ReverseV2", _along_axes),
    ("Concat ConcatV2", _concat),
    ("Split SplitV", _split),
    ("Fill BroadcastTo", _filled),
    ("Shape ShapeN", _shape),
    ("Gather GatherV2 ResourceGather", _gather),
    ("Pad PadV2 MirrorPad", _padded),
    ("MaxPool AvgPool", _pooled),
    ("Conv2D DepthwiseConv2dNative", _convolved),
    ("FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3", _batch_norm),
    ("ResizeBilinear ResizeNearestNeighbor ResizeBicubic ResizeArea", _resized),
    ("BatchMatMul BatchMatMulV2 BatchMatMulV3", _batch_matmul),
    ("ParseExample ParseExampleV2", _parsed),
    ("Unique UniqueV2", _unique),
    ("SparseToDense ScatterNd", _sparse_to_dense),
    ("SparseSlice SparseReorder", _sparse_regrouped),
    ("SparseCross SparseCrossV2 SparseCrossHashed", _sparse_cross),
    ("SegmentSum SegmentMean SegmentMax SegmentMin SegmentProd", _segments),
    ("UnsortedSegmentSum UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd", _unsorted_segments),
    (
        "SparseSegmentSum SparseSegmentMean SparseSegmentSqrtN SparseSegmentSumWithNumSegments "
        "SparseSegmentMeanWithNumSegments SparseSegmentSqrtNWithNumSegments",
        _sparse_segments,
    ),
    ("LookupTableFind LookupTableFindV2", _table_find),
    ("RegexReplace RegexFullMatch", _first_row_wise),
    ("Variable VariableV2 VarHandleOp Placeholder", _variable),
    (f"{_TABLES} BoostedTreesEnsembleResourceHandleOp", _table),
    ("BiasAdd BiasAddV1", _bias_add),
    ("BoostedTreesPredict", _boosted_trees),
    ("Cast", _cast),
    ("DecodeCSV", _decoded_csv),
    ("DecodeRaw", _decoded_raw),
    ("Einsum", _einsum),
    ("ExpandDims", _expand_dims),
    ("GatherNd", _gather_nd),
    ("MatMul", _matmul),
    ("OneHot", _one_hot),
    ("Pack", _pack),
    ("Range", _range),
    ("Rank", _rank),
    ("ReadVariableOp", _read_variable),
    ("Reshape", _reshape),
    ("Select", _select),
    ("Size", _size),
    ("Slice", _slice),
    ("SparseFillEmptyRows", _fill_empty_rows),
    ("SparseReshape", _sparse_reshape),
    ("SparseTensorDenseMatMul", _sparse_matmul),
    ("Squeeze", _squeeze),
    ("StridedSlice", _strided_slice),
    ("Tile", _tile),
    ("Transpose", _transpose),
    ("Unpack", _unpack),
    ("Where", _where),
)
RULES = {op: rule for ops, rule in _OPS_BY_RULE for op in ops.split()}

READS = frozenset(
    f"{_TABLES} Assert BoostedTreesEnsembleResourceHandleOp BoostedTreesPredict LookupTableFind "
    "LookupTableFindV2 LookupTableSize LookupTableSizeV2 Placeholder Print PrintV2 ReadVariableOp "
    "ResourceGather VarHandleOp VarIsInitializedOp Variable VariableV2".split()
)
"""Ops with a state that they don't change. After an Assert that fails, requests run again, one by one."""
