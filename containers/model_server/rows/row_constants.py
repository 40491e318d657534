"""Tensors that depend on the number of rows at most: their elements where they are sizes, and their shapes.

What a graph computes of sizes decides what its Reshape, Tile and Fill do to rows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from model_server.rows.row_arithmetic import BROADCASTING, UNARY, broadcast
from model_server.rows.row_nodes import INTEGERS, Mixes, Node, Outputs
from model_server.rows.row_slices import sliced_shape
from model_server.rows.row_values import CONSTANT, ONE, Size, Value, product, sizes, unknown

_FLOAT, _DOUBLE = 1, 2
_MOST_ELEMENTS = 64


def read(tensor: Any) -> Value:
    """Return the value of a Const op; only of a small one the elements."""
    shape = tuple(Size(dim.size) for dim in tensor.tensor_shape.dim)
    count = product(shape).number
    return Value(CONSTANT, shape, elements=_elements(tensor, count) if 0 < count <= _MOST_ELEMENTS else None)


def _elements(tensor: Any, count: int) -> tuple[Size | float, ...] | None:
    form = {3: "i", 9: "q", _FLOAT: "f", _DOUBLE: "d"}.get(tensor.dtype)
    if form is None:
        return None
    if tensor.tensor_content:
        if len(tensor.tensor_content) != count * struct.calcsize(form):
            return None
        numbers = list(struct.unpack(f"<{count}{form}", tensor.tensor_content))
    else:
        fields = {"i": tensor.int_val, "q": tensor.int64_val, "f": tensor.float_val, "d": tensor.double_val}
        numbers = list(fields[form])
        numbers += (numbers[-1:] or [0]) * (count - len(numbers))
    return tuple(Size(each) if tensor.dtype in INTEGERS else float(each) for each in numbers)


def fold(node: Node) -> Outputs:
    """Return the outputs of an op on sizes or constants, or raise Mixes if they are not known."""
    if node.op not in _FOLDS:
        raise Mixes
    return _FOLDS[node.op](node)


def shape_of(node: Node) -> tuple[Size, ...] | None:
    """Return the shape of the output of an op on constants, if it is known."""
    try:
        return _SHAPES[node.op](node) if node.op in _SHAPES else None
    except (Mixes, IndexError, ValueError):
        return None


def _vector(node: Node, index: int) -> tuple[Size, ...]:
    """Return the elements of an input of one dimension."""
    if len(_shape(node, index)) != 1:
        raise Mixes
    return node.sizes(index)


def _scalar(node: Node, index: int) -> Size:
    (element,) = node.sizes(index)
    return element


def _shape(node: Node, index: int = 0) -> tuple[Size, ...]:
    shape = node.inputs[index].shape
    if shape is None:
        raise Mixes
    return shape


def _same(node: Node) -> Outputs:
    return list(node.inputs)


def _cast(node: Node) -> Value:
    if node.attributes["DstT"].type not in INTEGERS:
        raise Mixes
    node.sizes(0)
    return node.inputs[0]


def _arithmetic(node: Node) -> Value:
    one, other = node.sizes(0), node.sizes(1)
    shapes = _shape(node, 0), _shape(node, 1)
    if max(map(len, shapes)) > 1 or (len(one) != len(other) and 1 not in (len(one), len(other))):
        raise Mixes
    length = max(len(one), len(other))
    longer = [each * (length if len(each) == 1 else 1) for each in (one, other)]
    pairs = zip(*longer, strict=True)
    return sizes([_calculated(node.op, a, b) for a, b in pairs], () if shapes == ((), ()) else None)


def _calculated(op: str, one: Size, other: Size) -> Size:
    result: Size | None = None
    if op == "Mul":
        result = one.times(other)
    elif op == "FloorDiv":
        result = one.over(other)
    elif one.symbols == other.symbols:
        number = {
            "Sub": one.number - other.number,
            "Maximum": max(one.number, other.number),
            "Minimum": min(one.number, other.number),
        }.get(op, one.number + other.number)
        result = Size(number, one.symbols)
    if result is None or not (result.number or not result.symbols):
        raise Mixes
    return result


def _prod(node: Node) -> Value:
    return sizes([product(_vector(node, 0))], (ONE,) if node.switch("keep_dims") else ())


def _pack(node: Node) -> Value:
    if any(value.shape != () for value in node.inputs):
        raise Mixes
    return sizes([_scalar(node, index) for index in range(len(node.inputs))])


def _unpack(node: Node) -> Outputs:
    return [sizes([size], ()) for size in _vector(node, 0)]


def _concat(node: Node) -> Value:
    parts = range(len(node.inputs) - 1) if node.op == "ConcatV2" else range(1, len(node.inputs))
    return sizes([size for index in parts for size in _vector(node, index)])


def _gather(node: Node) -> Value:
    elements, indices = _vector(node, 0), node.numbers(1)
    if any(not 0 <= index < len(elements) for index in indices):
        raise Mixes
    return sizes([elements[index] for index in indices], _shape(node, 1))


def _reshape(node: Node) -> Value:
    elements, target = node.sizes(0), node.numbers(1)
    if target in ((-1,), (len(elements),)):
        return sizes(elements)
    if target == ():
        return sizes(elements, ())
    raise Mixes


def _expand_dims(node: Node) -> Value:
    return sizes([_scalar(node, 0)]) if not _shape(node) else sizes(node.sizes(0), _with_axis(node))


def _with_axis(node: Node) -> tuple[Size, ...]:
    shape, (axis,) = list(_shape(node)), node.numbers(1)
    shape.insert(axis if axis >= 0 else axis + len(shape) + 1, ONE)
    return tuple(shape)


def _squeeze(node: Node) -> Value:
    return sizes([_scalar(node, 0)], ())


def _strided_slice(node: Node) -> Value:
    elements, begin, end, strides = _vector(node, 0), node.numbers(1), node.numbers(2), node.numbers(3)
    if len(begin) != 1 or node.integer("ellipsis_mask") or node.integer("new_axis_mask"):
        raise Mixes
    if node.integer("shrink_axis_mask"):
        if not -len(elements) <= begin[0] < len(elements):
            raise Mixes
        return sizes([elements[begin[0]]], ())
    first = None if node.integer("begin_mask") else begin[0]
    last = None if node.integer("end_mask") else end[0]
    return sizes(elements[first : last : strides[0]])


def _slice(node: Node) -> Value:
    elements, begin, size = _vector(node, 0), node.numbers(1), node.numbers(2)
    stop = None if size[0] < 0 else begin[0] + size[0]
    return sizes(elements[begin[0] : stop])


def _range(node: Node) -> Value:
    numbers = [each[0] for each in (node.numbers(0), node.numbers(1), node.numbers(2))]
    elements = range(*numbers)
    if len(elements) > _MOST_ELEMENTS:
        raise Mixes
    return sizes([Size(each) for each in elements])


_FOLDING: tuple[tuple[str, Callable[[Node], Outputs]], ...] = (
    ("Add AddV2 Sub Mul FloorDiv Maximum Minimum", _arithmetic),
    ("Identity IdentityN StopGradient Snapshot EnsureShape", _same),
    ("Concat ConcatV2", _concat),
    ("Gather GatherV2", _gather),
    ("Cast", _cast),
    ("ExpandDims", _expand_dims),
    ("Pack", _pack),
    ("Prod", _prod),
    ("Range", _range),
    ("Reshape", _reshape),
    ("Slice", _slice),
    ("Squeeze", _squeeze),
    ("StridedSlice", _strided_slice),
    ("Unpack", _unpack),
)
_FOLDS = {op: rule for ops, rule in _FOLDING for op in ops.split()}


def _broadcast_shape(node: Node) -> tuple[Size, ...]:
    shapes = [_shape(node, index) for index in range(len(node.inputs))]
    return tuple(broadcast(node.name, shapes, max(map(len, shapes))))


def _concat_shape(node: Node) -> tuple[Size, ...]:
    (axis,) = node.numbers(len(node.inputs) - 1)
    shapes = [_shape(node, index) for index in range(len(node.inputs) - 1)]
    along = [shape[axis] for shape in shapes]
    is_known = not any(size.symbols for size in along)
    total = Size(sum(size.number for size in along)) if is_known else unknown(node.name)
    axis %= len(shapes[0])
    return (*shapes[0][:axis], total, *shapes[0][axis + 1 :])


def _reshape_shape(node: Node) -> tuple[Size, ...]:
    target, elements = list(node.sizes(1)), product(_shape(node))
    if Size(-1) in target:
        rest = elements.over(product([size for size in target if size != Size(-1)]))
        target[target.index(Size(-1))] = rest if rest is not None else unknown(node.name)
    return tuple(target)


def _reduced_shape(node: Node) -> tuple[Size, ...]:
    shape = _shape(node)
    axes = {axis % len(shape) for axis in node.numbers(1)}
    keep = node.switch("keep_dims")
    return tuple(ONE if axis in axes else size for axis, size in enumerate(shape) if keep or axis not in axes)


def _transpose_shape(node: Node) -> tuple[Size, ...]:
    return tuple(_shape(node)[axis] for axis in node.numbers(1))


def _squeeze_shape(node: Node) -> tuple[Size, ...]:
    shape, axes = _shape(node), node.integers("squeeze_dims")
    if not axes:
        raise Mixes
    gone = {axis % len(shape) for axis in axes}
    return tuple(size for axis, size in enumerate(shape) if axis not in gone)


def _tile_shape(node: Node) -> tuple[Size, ...]:
    return tuple(a.times(b) for a, b in zip(_shape(node), node.sizes(1), strict=True))


def _gather_shape(node: Node) -> tuple[Size, ...]:
    if (len(node.inputs) > 2 and any(node.numbers(2))) or node.integer("batch_dims"):  # noqa: PLR2004
        raise Mixes
    return (*_shape(node, 1), *_shape(node)[1:])


_SHAPING: tuple[tuple[str, Callable[[Node], tuple[Size, ...]]], ...] = (
    (f"{UNARY} Identity StopGradient Cast Softmax LogSoftmax", _shape),
    (BROADCASTING, _broadcast_shape),
    ("Gather GatherV2 ResourceGather", _gather_shape),
    ("Sum Mean Max Min Prod Any All", _reduced_shape),
    ("BroadcastTo", lambda node: node.sizes(1)),
    ("ConcatV2", _concat_shape),
    ("ExpandDims", _with_axis),
    ("Fill", lambda node: node.sizes(0)),
    ("LookupTableFindV2", lambda node: _shape(node, 1)),
    ("LookupTableSizeV2", lambda _: ()),
    ("Reshape", _reshape_shape),
    ("Squeeze", _squeeze_shape),
    ("StridedSlice", lambda node: tuple(sliced_shape(node, _shape(node)))),
    ("Tile", _tile_shape),
    ("Transpose", _transpose_shape),
)
_SHAPES = {op: rule for ops, rule in _SHAPING for op in ops.split()}
