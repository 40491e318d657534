"""Signatures whose runs may take longer than the size of a request suggests: with loops, or ops that wait."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tensorflow.core.protobuf import meta_graph_pb2

_UNBOUNDED = re.compile(
    "While|Enter|NextIteration|^For$|Dequeue|Unstage|Iterator|Dataset|TakeMany|PyFunc|Recv"
)


def signatures_with_loops(meta_graph: meta_graph_pb2.MetaGraphDef) -> frozenset[str]:
    """Return the signatures for which an op repeats others or waits for something.

    The values of a request may say how often: its number of rows and bytes does not bound the time.
    """
    nodes = {node.name: node for node in meta_graph.graph_def.node}
    functions = {each.signature.name: each for each in meta_graph.graph_def.library.function}
    return frozenset(
        key
        for key, signature in meta_graph.signature_def.items()
        if _reaches_loop([info.name for info in signature.outputs.values()], nodes, functions)
    )


def _reaches_loop(tensors: Iterable[str], nodes: Mapping[str, Any], functions: Mapping[str, Any]) -> bool:
    left, seen = [_node_name(tensor) for tensor in tensors], set[str]()
    called: set[str] = set()
    while left:
        node = nodes.get(left.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if _UNBOUNDED.search(node.op):
            return True
        called.update(_functions_of(node))
        left.extend(map(_node_name, node.input))
    return _any_unbounded(called, functions)


def _any_unbounded(called: set[str], functions: Mapping[str, Any]) -> bool:
    left, seen = list(called), set[str]()
    while left:
        function = functions.get(left.pop())
        if function is None or function.signature.name in seen:
            continue
        seen.add(function.signature.name)
        for node in function.node_def:
            if _UNBOUNDED.search(node.op):
                return True
            left.extend(_functions_of(node))
    return False


def _functions_of(node: Any) -> list[str]:
    """Return the functions that an op may call: those in its attributes, and one that it is named after."""
    named = [each.name for value in node.attr.values() for each in (value.func, *value.list.func)]
    return [node.op, *filter(None, named)]


def _node_name(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]
