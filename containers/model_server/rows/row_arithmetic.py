"""Rules of ops that compute each row by itself: element-wise, products with weights, strings."""

from __future__ import annotations

from collections.abc import Sequence

from model_server.rows.row_nodes import INTEGERS, MATRIX, Mixes, Node, Outputs, by_op
from model_server.rows.row_values import ALIGNED, CONSTANT, ONE, Size, Value, aligned, unknown


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
    if len(value.shape or ()) < MATRIX:
        raise Mixes
    return value


def _first_row_wise(node: Node) -> Value:
    """Return the first input's rows; the other inputs have to be constant."""
    for index in range(1, len(node.inputs)):
        node.constant(index)
    return node.aligned(0)


def _matmul(node: Node) -> Value:
    value, weights = node.aligned(0, MATRIX), node.constant(1)
    if node.switch("transpose_a") or weights.shape is None or len(weights.shape) != MATRIX:
        raise Mixes
    return aligned(value.lead, [weights.shape[0 if node.switch("transpose_b") else 1]])


def _batch_matmul(node: Node) -> Value:
    """Of matrices along the first dimension, or of those with one constant matrix."""
    one, other = node.inputs
    rows = one if one.kind == ALIGNED else other
    rank = len(rows.shape or ())
    leads = [node.aligned(i).lead for i, value in enumerate(node.inputs) if value.kind != CONSTANT]
    if not leads or leads.count(leads[0]) != len(leads) or rank <= MATRIX:
        raise Mixes
    for value in (one, other):
        shape = value.shape
        if shape is None or len(shape) < MATRIX or len(shape) > rank:
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


def _decoded_raw(node: Node) -> Value:
    value = node.aligned(0)
    return aligned(value.lead, [*value.inner, unknown(node.name)])


def _decoded_csv(node: Node) -> Outputs:
    for index in range(1, len(node.inputs)):
        node.constant(index)
    return [node.aligned(0)] * (len(node.inputs) - 1)


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

RULES = by_op(
    (UNARY, lambda node: node.aligned(0)),
    (BROADCASTING, _elementwise),
    (
        "Identity IdentityN StopGradient PreventGradient Snapshot EnsureShape Enter RefEnter Exit "
        "RefExit NextIteration RefNextIteration RefIdentity LoopCond",
        _same,
    ),
    ("BatchMatMul BatchMatMulV2 BatchMatMulV3", _batch_matmul),
    ("RegexReplace RegexFullMatch", _first_row_wise),
    ("BiasAdd BiasAddV1", _bias_add),
    ("Cast", _cast),
    ("DecodeCSV", _decoded_csv),
    ("DecodeRaw", _decoded_raw),
    ("Einsum", _einsum),
    ("MatMul", _matmul),
    ("Select", _select),
)
