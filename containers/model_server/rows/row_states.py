"""Rules of ops with a state that they only read: variables, tables, boosted trees."""

from __future__ import annotations

from dataclasses import replace

from model_server.rows.row_nodes import Mixes, Node, by_op
from model_server.rows.row_values import BATCH, CONSTANT, Size, Value, aligned, unknown

TABLES = "HashTable HashTableV2 MutableHashTable MutableHashTableV2"


def _table_find(node: Node) -> Value:
    """Look-ups of keys; the tables in RULES have a scalar as the value of each key."""
    if node.constant(0).source not in TABLES.split():
        raise Mixes
    node.constant(2)
    return node.aligned(1)


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


RULES = by_op(
    ("LookupTableFind LookupTableFindV2", _table_find),
    ("Variable VariableV2 VarHandleOp Placeholder", _variable),
    (f"{TABLES} BoostedTreesEnsembleResourceHandleOp", _table),
    ("BoostedTreesPredict", _boosted_trees),
    ("ReadVariableOp", _read_variable),
)
