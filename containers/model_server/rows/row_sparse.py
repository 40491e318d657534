"""Rules of ops whose entries belong to rows: ParseExample, Where, Unique, sparse tensors, segments."""

from __future__ import annotations

from model_server.rows import row_values
from model_server.rows.row_nodes import MATRIX, Mixes, Node, Outputs, by_op, number_of
from model_server.rows.row_values import (
    ALIGNED,
    BATCH,
    CONSTANT,
    INDICES,
    ONE,
    POSITIONS,
    ROW_IDS,
    ROWS,
    UNIQUE_INDEX,
    Lead,
    Size,
    Value,
    aligned,
    product,
    sizes,
    varying,
)


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
        filling = number_of(node.constant(3))
    if all(size.is_fixed for size in shape[1:]):
        return aligned(BATCH, shape[1:])
    if len(shape) != MATRIX or filling is None:
        raise Mixes
    return aligned(BATCH, shape[1:], pad=filling)


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
        if node.aligned(index, MATRIX).lead != BATCH:
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
    if node.switch("adjoint_a") or dense is None or len(dense) != MATRIX:
        raise Mixes
    return aligned(BATCH, [dense[0 if node.switch("adjoint_b") else 1]])


RULES = by_op(
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
    ("SparseFillEmptyRows", _fill_empty_rows),
    ("SparseReshape", _sparse_reshape),
    ("SparseTensorDenseMatMul", _sparse_matmul),
    ("Where", _where),
)
