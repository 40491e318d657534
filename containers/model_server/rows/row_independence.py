"""Whether a signature's rows are known to be independent: output row i depends on input row i only.

Requests of several clients may share a run of such a signature and of no other. The graph is walked from
the signature's inputs to its outputs, through functions, loops and conditions, without running anything;
row_rules.py has what each op does to rows. An op without a rule, or one that changes a state, isn't known.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from model_server.base import version_settings
from model_server.base.status import invalid_argument
from model_server.rows import row_constants
from model_server.rows.row_nodes import Mixes, Node, Outputs
from model_server.rows.row_rules import READS, RULES
from model_server.rows.row_values import (
    ALIGNED,
    BATCH,
    CONSTANT,
    MIXED,
    SIZES,
    Size,
    Value,
    aligned,
    join,
    mixed,
    unknown,
)

_MOST_NODES = 200_000
_MOST_CALLS = 50  # one within another
_MOST_ROUNDS = 20  # of a loop, until what is known of its variables doesn't change
_CALLS = {
    "PartitionedCall": ("f",),
    "StatefulPartitionedCall": ("f",),
    "If": ("then_branch", "else_branch"),
    "StatelessIf": ("then_branch", "else_branch"),
    "While": ("cond", "body"),
    "StatelessWhile": ("cond", "body"),
}
_MALFORMED = (Mixes, LookupError, ValueError, TypeError, ArithmeticError)
_HAS_RULE_FOR_CONSTANTS = frozenset({*READS, "Shape", "ShapeN", "Size", "Rank"})


_Place = tuple[str, int]
_CONTROL = -1


class _Unknown(Exception):
    """The walk ends: with the reason."""


def of_version(directory: Path, meta_graph: Any, ops: Mapping[str, Any]) -> dict[str, str]:
    """Return dependences(), unless the version's settings have a row_independent of their own.

    Raises StatusError if they cannot be read.
    """
    stated = version_settings.read(directory).get("row_independent")
    if stated is None:
        return dependences(meta_graph, ops)
    if not isinstance(stated, bool):
        path = directory / version_settings.FILE
        raise invalid_argument(
            f"{path}: found row_independent {stated!r}, expected {version_settings.EXPECTED}"
        )
    reason = "" if stated else f"{version_settings.FILE} says so"
    return dict.fromkeys(meta_graph.signature_def, reason)


def dependences(meta_graph: Any, ops: Mapping[str, Any]) -> dict[str, str]:
    """Return, by signature, why its rows may depend on one another; "" if they are independent.

    `ops` has the OpDefs that TensorFlow knows, by name.
    """
    graph = _Graph(meta_graph, ops)
    memories: dict[Any, _Memory] = {}
    found = {}
    for key, signature in meta_graph.signature_def.items():
        try:
            feeds = _feeds(signature)
            # Signatures of the same inputs share the walk; what it has found when it fails isn't final.
            memory = memories.pop(frozenset(feeds.items()), None) or _Memory(feeds)
            found[key] = graph.dependence(signature, memory)
            memories[frozenset(feeds.items())] = memory
        except _Unknown as reason:
            found[key] = str(reason)
        except _MALFORMED as error:
            found[key] = f"the graph is malformed: {error!r}"
    return found


def _feeds(signature: Any) -> dict[_Place, Value]:
    """Return what is fed: rows along the first dimension of each input."""
    if not signature.inputs:
        raise _Unknown("no inputs")
    feeds = {}
    for alias, info in signature.inputs.items():
        dims = info.tensor_shape.dim
        if not info.name or info.tensor_shape.unknown_rank or not dims or dims[0].size >= 0:
            raise _Unknown(f"input {alias} has no first dimension of unknown size")
        sizes = [dim.size for dim in dims[1:]]
        inner = [unknown(f"{alias}:{i}") if size < 0 else Size(size) for i, size in enumerate(sizes)]
        name, _, index = info.name.partition(":")
        feeds[name, int(index or 0)] = aligned(BATCH, inner)
    return feeds


class _Memory:
    """What is known of the tensors of a graph, or of a function that is called with certain arguments."""

    def __init__(self, feeds: Mapping[_Place, Value], path: str = "", depth: int = 0) -> None:
        self.feeds = feeds
        self.path = path
        self.depth = depth
        self.outputs: dict[str, Outputs | None] = {}


class _Body:
    """The nodes of a graph or of a function, and the places of their inputs."""

    def __init__(self, nodes: Any, op_defs: Mapping[str, Any]) -> None:
        self.nodes = {node.name: node for node in nodes}
        self._op_defs = op_defs
        self._inputs: dict[str, list[_Place]] = {}

    def inputs(self, name: str) -> list[_Place]:
        """Return the inputs of a node, control inputs among them."""
        found = self._inputs.get(name)
        if found is None:
            found = self._inputs[name] = [self.place(each) for each in self.nodes[name].input]
        return found

    def place(self, tensor: str) -> _Place:
        """Return node and output number of a tensor, which in a function is named node:output:number."""
        if tensor.startswith("^"):
            return tensor[1:], _CONTROL
        name, _, rest = tensor.partition(":")
        output, _, index = rest.rpartition(":")
        node = self.nodes.get(name) if output else None
        return name, int(index or 0) + (self._offset(node, output) if node is not None else 0)

    def _offset(self, node: Any, output: str) -> int:
        offset = 0
        definition = self._op_defs.get(node.op)
        for argument in definition.output_arg if definition else ():
            if argument.name == output:
                return offset
            if argument.number_attr:
                offset += node.attr[argument.number_attr].i
            elif argument.type_list_attr:
                offset += len(node.attr[argument.type_list_attr].list.type)
            else:
                offset += 1
        raise _Unknown(f"{node.op} {node.name} has no output {output}")


class _Graph:
    """A MetaGraphDef."""

    def __init__(self, meta_graph: Any, ops: Mapping[str, Any]) -> None:
        self._functions = {each.signature.name: each for each in meta_graph.graph_def.library.function}
        self._op_defs = {**ops, **{name: each.signature for name, each in self._functions.items()}}
        self._main = _Body(meta_graph.graph_def.node, self._op_defs)
        self._bodies: dict[str, _Body] = {}
        self._walked = 0

    def dependence(self, signature: Any, memory: _Memory) -> str:
        """Return why rows may depend on one another, or "". Raises _Unknown with such a reason, too."""
        outputs = signature.outputs
        places = {alias: self._main.place(info.name) for alias, info in outputs.items()}
        self._evaluate(self._main, memory, [name for name, _ in places.values()])
        for alias in sorted(places):
            value = self._value(memory, places[alias])
            if value is None or value.kind != ALIGNED or value.lead != BATCH or value.pad is not None:
                reason = value.source if value and value.kind == MIXED else "not one entry for each row"
                return f"output {alias}: {reason}"
        return ""

    def _evaluate(self, body: _Body, memory: _Memory, roots: Sequence[str]) -> None:
        """Find the outputs of all nodes that the roots need. Raises _Unknown if one changes a state."""
        order = list(self._order(body, memory, roots))
        for name in order:
            self._check_state(body.nodes[name], memory)
        for _ in range(_MOST_ROUNDS):
            has_changed = has_loop = False
            for name in order:
                outputs = self._outputs(body, memory, body.nodes[name])
                has_loop |= outputs is None or body.nodes[name].op in ("Merge", "RefMerge")
                has_changed |= outputs != memory.outputs.get(name)
                memory.outputs[name] = outputs
            if not has_changed or not has_loop:
                return
        raise _Unknown(f"{memory.path or 'the graph'} has a loop that is not understood")

    @staticmethod
    def _order(body: _Body, memory: _Memory, roots: Sequence[str]) -> Iterator[str]:
        """Yield the nodes that the roots need, inputs first, but for the edges that close a loop."""
        seen = set(memory.outputs)
        stack = [(root, False) for root in reversed(roots)]
        while stack:
            name, is_done = stack.pop()
            if is_done:
                yield name
            elif name not in seen and name in body.nodes:
                seen.add(name)
                stack.append((name, True))
                inputs = reversed(body.inputs(name))
                stack.extend((place[0], False) for place in inputs if place not in memory.feeds)

    def _check_state(self, node: Any, memory: _Memory) -> None:
        self._walked += 1
        if self._walked > _MOST_NODES:
            raise _Unknown(f"more than {_MOST_NODES} nodes")
        if node.op in _CALLS or node.op in READS or node.op in self._functions:
            return
        definition = self._op_defs.get(node.op)
        if definition is None:
            raise _Unknown(f"{node.op} {memory.path}{node.name} is no op of TensorFlow's")
        # Ops that assign to variables of TensorFlow 1 take a reference, and don't count as stateful.
        assigns = any(each.is_ref for each in definition.input_arg) and not node.op.startswith("Ref")
        if definition.is_stateful or assigns:
            raise _Unknown(f"{node.op} {memory.path}{node.name} has a state")

    @staticmethod
    def _value(memory: _Memory, place: _Place) -> Value | None:
        """Return what is known of a tensor; None if it is still to be found, in a loop."""
        fed = memory.feeds.get(place)
        if fed is not None:
            return fed
        name, index = place
        outputs = memory.outputs.get(name)
        if outputs is None or isinstance(outputs, Value):
            return outputs
        return outputs[index] if index < len(outputs) else mixed(f"{memory.path}{name} has no output {index}")

    def _outputs(self, body: _Body, memory: _Memory, node: Any) -> Outputs | None:
        name = memory.path + node.name
        places = [place for place in body.inputs(node.name) if place[1] != _CONTROL]
        given = [self._value(memory, place) for place in places]
        if node.op in ("Merge", "RefMerge"):
            return _merged(name, [each for each in given if each is not None])
        inputs = [each for each in given if each is not None]
        if len(inputs) < len(given):
            return None
        functions = [node.op] if node.op in self._functions else []
        if node.op in _CALLS:
            functions = [node.attr[attribute].func.name for attribute in _CALLS[node.op]]
        if functions:
            return self._called(node.op, name, functions, inputs, memory.depth + 1)
        return _of_op(name, node, inputs)

    def _called(
        self, op: str, name: str, functions: Sequence[str], inputs: Sequence[Value], depth: int
    ) -> Sequence[Value]:
        if op.endswith("While"):
            return self._looped(name, functions[0], functions[1], list(inputs), depth)
        if not op.endswith("If"):
            return self._call(functions[0], name, inputs, depth)
        then, otherwise = (self._call(each, f"{name}/{each}", inputs[1:], depth) for each in functions)
        if inputs[0].kind != CONSTANT:
            return [mixed(f"{op} {name}")] * len(then)
        return [join(a, b, f"{name}:{i}") for i, (a, b) in enumerate(zip(then, otherwise, strict=True))]

    def _looped(self, name: str, condition: str, body: str, values: list[Value], depth: int) -> list[Value]:
        for _ in range(_MOST_ROUNDS):
            (goes_on,) = self._call(condition, f"{name}/{condition}", values, depth)
            results = self._call(body, f"{name}/{body}", values, depth)
            if goes_on.kind != CONSTANT:
                return [mixed(f"While {name}: how often it runs depends on rows")] * len(values)
            pairs = enumerate(zip(values, results, strict=True))
            joined = [join(one, other, f"{name}:{i}") for i, (one, other) in pairs]
            if joined == values:
                return joined
            values = joined
        raise _Unknown(f"While {name} is not understood")

    def _call(self, function: str, path: str, inputs: Sequence[Value], depth: int) -> list[Value]:
        """Return the outputs of a function. All of its nodes count, as those with a state run in any case."""
        if depth > _MOST_CALLS:
            raise _Unknown(f"{path}: too many functions within each other")
        if function not in self._functions:
            raise _Unknown(f"{path}: no function {function}")
        definition = self._functions[function]
        if function not in self._bodies:
            self._bodies[function] = _Body(definition.node_def, self._op_defs)
        body, arguments = self._bodies[function], [each.name for each in definition.signature.input_arg]
        if len(arguments) != len(inputs):
            raise _Unknown(f"{path}: {len(inputs)} inputs for function {function}")
        feeds = {(name, 0): value for name, value in zip(arguments, inputs, strict=True)}
        memory = _Memory(feeds, f"{path}/", depth)
        self._evaluate(body, memory, list(body.nodes))
        results = [body.place(definition.ret[each.name]) for each in definition.signature.output_arg]
        values = [self._value(memory, result) for result in results]
        return [value or mixed(f"{path}: a loop that is not understood") for value in values]


def _merged(name: str, inputs: Sequence[Value]) -> Outputs | None:
    if not inputs:
        return None
    result = inputs[0]
    for each in inputs[1:]:
        result = join(result, each, name)
    return [result, result if result.kind == MIXED else Value(CONSTANT, ())]


def _of_op(name: str, node: Any, inputs: Sequence[Value]) -> Outputs:
    for value in inputs:
        if value.kind == MIXED:
            return value
    if node.op == "Const":
        return row_constants.read(node.attr["value"].tensor)
    if any(value.WhichOneof("value") == "placeholder" for value in node.attr.values()):
        return mixed(f"{node.op} {name} has an attribute of its caller")
    if node.op in ("Switch", "RefSwitch"):
        return [inputs[0]] * 2 if inputs[1].kind == CONSTANT else mixed(f"{node.op} {name}")
    return _by_rule(Node(name, node.op, inputs, node.attr))


def _by_rule(node: Node) -> Outputs:
    kinds = {value.kind for value in node.inputs}
    if kinds <= {CONSTANT, SIZES}:
        try:
            return row_constants.fold(node)
        except _MALFORMED:
            pass
    is_constant = kinds <= {CONSTANT}
    try:
        if not is_constant or node.op in _HAS_RULE_FOR_CONSTANTS:
            return RULES[node.op](node)
    except _MALFORMED:
        pass
    return Value(CONSTANT, row_constants.shape_of(node)) if is_constant else mixed(f"{node.op} {node.name}")


def _main() -> None:
    """Print the dependences and the unknown ops of the SavedModel that is the argument, as JSON."""
    from model_server.tensorflow_c import runtime

    runtime.import_tensorflow()
    from google.protobuf import text_format
    from tensorflow.core.protobuf import saved_model_pb2

    from model_server.tensorflow_c import op_libraries
    from model_server.tensorflow_c.tf_session import op_definitions

    op_libraries.load(os.environ.get(op_libraries.VARIABLE, ""))
    folder, saved_model = Path(sys.argv[1]), saved_model_pb2.SavedModel()
    binary = folder / "saved_model.pb"
    if binary.is_file():
        saved_model.ParseFromString(binary.read_bytes())
    else:
        text_format.Parse((folder / "saved_model.pbtxt").read_text(), saved_model)
    (meta_graph,) = (each for each in saved_model.meta_graphs if list(each.meta_info_def.tags) == ["serve"])
    found = of_version(folder, meta_graph, op_definitions())
    json.dump({"dependences": found, "unknown_ops": op_libraries.unknown_ops(meta_graph)}, sys.stdout)


if __name__ == "__main__":
    _main()
