"""Which ops a published graph may hold: none that reads or writes files, talks to a network or calls Python.

A server runs the graph of a SavedModel as its own user: `ReadFile` returned the environment of the pipeline.
Ops are looked for in the graph and in every function of its library, whether or not they are reached. Ops
that belong in a SavedModel, of the saver and of tables with vocabularies, are allowed in their place only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.python.saved_model import loader_impl

from tasks.core.artifacts import Check
from tasks.core.errors import Rejected

# Names of TensorFlow 2.15's registry (TF_GetAllOpList), by what they reach.
_REFUSED = re.compile(
    "|".join(
        (
            # Files.
            "ReadFile", "WriteFile", ".*MatchingFiles.*", "DumpTensor", "Skipgram", "RecordInput",
            ".*Reader(V2)?", "Reader.*", ".*(TFRecord|TextLine|FixedLengthRecord|CSV|LMDB|Sql)Dataset(V2)?",
            "(Cache|Load|Save)Dataset(V2)?", "Snapshot.+", ".*DatasetToTFRecord", "DistributedSave",
            "LoadAndRemapMatrix", "GenerateVocabRemapping", "(Initialize|Serialize)TRTResource",
            "TRTEngineOp", "FileSystemSetConfiguration", "Save", "SaveSlices", "Restore", "RestoreSlice",
            "DTensorRestoreV2",
            "(Create|Close|Flush)?Summary(File|Db)?Writer", "CreateSummary.*", "Write.*Summary",
            "StatsAggregatorSetSummaryWriter",
            # Python, code that is not in the graph, and graphs that are made when it runs.
            "PyFunc", "PyFuncStateless", "EagerPyFunc", "DatasetFromGraph", "DeserializeIterator",
            "XlaCustomCall(V2)?", "TfLiteSubgraphExecute", "_?XlaHostCompute.*",
            # The network, other processes and devices that are not the server's.
            "Rpc.*", "TryRpc", "RemoteCall", "RemoteFusedGraphExecute", "DataService.*",
            "RegisterDataset(V2)?",
            "_?(Host)?(Send|Recv)", "Collective.*", "_?Nccl.*", ".*TPU.*", "_?Configure.*", "_?Shutdown.*",
            "Debug(Identity|NanCount|NumericSummary)(V2|V3)?",
        )
    )
)  # fmt: skip
_SAVER = ("SaveV2", "MergeV2Checkpoints", "RestoreV2")
_TABLE_FILES = {"InitializeTableFromTextFile": 1, "InitializeTableFromTextFileV2": 1}
"""Which input of the op names a file."""
_FILE_ATTRIBUTES = {"FixedUnigramCandidateSampler": "vocab_file", "Copy": "debug_ops_spec",
                    "CopyHost": "debug_ops_spec"}  # fmt: skip
_CALLS = ("PartitionedCall", "StatefulPartitionedCall", "TPUPartitionedCall")
_INIT_SIGNATURE = "__saved_model_init_op"
_INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op", "saved_model_init_op")
_HINT = "if a server may do that for anyone who sends requests: validation.allow_ops: [{}]"

Origin = Literal["asset", "checkpoint", ""]
"""What a tensor is known to be: the path of an asset or of the variables, as the loader feeds it."""
Stage = Literal["signature", "init", "restore"]
"""When an op runs. Only the loader feeds paths: to a signature, an asset's tensor is what the graph has."""


@dataclass(frozen=True)
class _Violation:
    op: str
    where: str
    why: str


def require_contained(folder: Path, allowed: Collection[str] = ()) -> None:
    """Raise Rejected if an op of any MetaGraph in the SavedModel reaches outside of it.

    `allowed` holds the names of ops that may be there all the same.
    """
    try:
        saved_model = loader_impl.parse_saved_model(str(folder))
    except OSError:
        return  # what cannot be parsed does not load, which is reported as that
    found = [
        violation
        for meta_graph in saved_model.meta_graphs
        for violation in _violations(meta_graph, folder)
        if violation.op not in allowed
    ]
    if not found:
        return
    first, rule = found[0], "no op reaches files, the network or Python"
    failed = Check("ops", rule, f"{first.op} in {first.where}", 0, passed=False)
    more = f" ({len(found)} such ops)" if len(found) > 1 else ""
    message = f"validation: the graph has {first.op} in {first.where}: {first.why}{more}"
    raise Rejected(message, _HINT.format(first.op), (failed,))


def _violations(meta_graph: meta_graph_pb2.MetaGraphDef, folder: Path) -> Iterator[_Violation]:
    graph = meta_graph.graph_def
    for node in graph.node:
        yield from _refused(node, f"node {node.name}")
    for function in graph.library.function:
        for node in function.node_def:
            yield from _refused(node, f"node {node.name} of function {function.signature.name}")
    yield from _assets(meta_graph, folder)
    yield from _Walk(meta_graph).violations()


def _refused(node: Any, where: str) -> Iterator[_Violation]:
    if _REFUSED.fullmatch(node.op):
        yield _Violation(node.op, where, "it reaches files, the network or Python")
    attribute = _FILE_ATTRIBUTES.get(node.op)
    if attribute and (node.attr[attribute].s or node.attr[attribute].list.s):
        yield _Violation(node.op, where, f"its attribute {attribute} names files")
    stream = node.attr["output_stream"].s.decode(errors="replace") if node.op == "PrintV2" else ""
    if stream.startswith("file:"):
        yield _Violation(node.op, where, f"it prints to {stream}")


def _asset_files(meta_graph: meta_graph_pb2.MetaGraphDef) -> list[Any]:
    """Return the AssetFileDefs as loaders find them: TensorFlow 1 wrote them into a collection."""
    if meta_graph.asset_file_def:
        return list(meta_graph.asset_file_def)
    collections = meta_graph.collection_def
    packed = collections["saved_model_assets"].any_list.value if "saved_model_assets" in collections else ()
    return [meta_graph_pb2.AssetFileDef.FromString(each.value) for each in packed]


def _assets(meta_graph: meta_graph_pb2.MetaGraphDef, folder: Path) -> Iterator[_Violation]:
    """Yield assets that are not files below `assets`: servers read what their names lead to."""
    inside = (folder / "assets").resolve()
    for asset in _asset_files(meta_graph):
        if not (inside / asset.filename).resolve().is_relative_to(inside):
            where = f"asset {asset.filename!r}"
            yield _Violation("asset_file_def", where, "it leads out of the version's folder")


def _node_name(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]


def _indexed(tensor: str) -> str:
    return tensor if ":" in tensor else f"{tensor}:0"


@dataclass
class _Scope:
    """The graph, or a function's body as one call of it: nodes, and what its arguments are."""

    name: str
    nodes: Mapping[str, Any]
    arguments: Mapping[str, Origin] = field(default_factory=dict)


class _Walk:
    """What servers run: signatures, the init op and the restore op, through functions and control flow."""

    def __init__(self, meta_graph: meta_graph_pb2.MetaGraphDef) -> None:
        self._meta_graph = meta_graph
        graph = meta_graph.graph_def
        self._functions = {each.signature.name: each for each in graph.library.function}
        self._gradients = {each.function_name: each.gradient_func for each in graph.library.gradient}
        self._graph = _Scope("", {node.name: node for node in graph.node})
        self._known: dict[str, Origin] = {}
        for asset in _asset_files(meta_graph):
            self._known[asset.tensor_info.name] = "asset"
        saver = meta_graph.saver_def
        if saver.filename_tensor_name:
            self._known[_indexed(saver.filename_tensor_name)] = "checkpoint"
        self._seen: set[tuple[Any, ...]] = set()

    def violations(self) -> Iterator[_Violation]:
        """Yield the ops of the saver and of tables that are used for something else."""
        collections = self._meta_graph.collection_def
        init_ops = [value for name in _INIT_COLLECTIONS if name in collections
                    for value in collections[name].node_list.value]  # fmt: skip
        for key, signature in self._meta_graph.signature_def.items():
            outputs = [info.name for info in signature.outputs.values()]
            if key == _INIT_SIGNATURE and all(self._is_no_op(name) for name in outputs):
                init_ops += outputs
            else:
                yield from self._reach(self._graph, outputs, "signature")
        yield from self._reach(self._graph, init_ops, "init")
        yield from self._reach(self._graph, [self._meta_graph.saver_def.restore_op_name], "restore")

    def _is_no_op(self, tensor: str) -> bool:
        """Return whether nothing comes out: a client cannot request it."""
        node = self._graph.nodes.get(_node_name(tensor))
        return node is not None and node.op == "NoOp"

    def _reach(self, scope: _Scope, tensors: Sequence[str], stage: Stage) -> Iterator[_Violation]:
        left, seen = [_node_name(tensor) for tensor in tensors], set[str]()
        while left:
            name = left.pop()
            node = scope.nodes.get(name)
            if node is None or name in seen:
                continue
            seen.add(name)
            yield from self._misused(scope, node, stage)
            yield from self._called(scope, node, stage)
            left.extend(map(_node_name, node.input))

    def _misused(self, scope: _Scope, node: Any, stage: Stage) -> Iterator[_Violation]:
        where = f"node {node.name}" + (f" of function {scope.name}" if scope.name else "")
        if node.op in _SAVER:
            if node.op != "RestoreV2" or stage != "restore":
                yield _Violation(node.op, where, f"the {stage}{' op' * (stage != 'signature')} runs it")
            elif self._origin(scope, node.input[0]) != "checkpoint":
                yield _Violation(node.op, where, "it reads another file than the version's variables")
        elif node.op in _TABLE_FILES:
            path = node.input[_TABLE_FILES[node.op]]
            if stage == "signature" or self._origin(scope, path) != "asset":
                yield _Violation(node.op, where, "its file is not an asset that the init op reads")

    def _called(self, scope: _Scope, node: Any, stage: Stage) -> Iterator[_Violation]:
        """Follow the functions that a node may call, with what is known of their arguments."""
        named = [each.name for value in node.attr.values() for each in (value.func, *value.list.func)]
        named += [self._gradients[name] for name in named if name in self._gradients]
        for name in {node.op, *named}:
            function = self._functions.get(name)
            if function is None:
                continue
            given: tuple[Origin, ...] = ()
            # A loop may change its variables, and other ops choose what they pass on.
            if node.op in _CALLS or node.op == name:
                given = tuple(self._origin(scope, each) for each in node.input if not each.startswith("^"))
            elif node.op in ("If", "StatelessIf", "Case", "StatelessCase"):
                given = tuple(
                    self._origin(scope, each) for each in node.input[1:] if not each.startswith("^")
                )
            if (name, given, stage) in self._seen:
                continue
            self._seen.add((name, given, stage))
            arguments = [each.name for each in function.signature.input_arg]
            body = _Scope(
                name,
                {each.name: each for each in function.node_def},
                dict(zip(arguments, given, strict=False)),
            )
            # All of it: stateful ops of a function run, whether or not its outputs need them.
            yield from self._reach(body, list(body.nodes), stage)

    def _holds_asset(self, handle: str) -> bool:
        """Return whether a variable has the path of an asset only, as TensorFlow 2 exports them."""
        name = _node_name(handle)
        variable = self._graph.nodes.get(name)
        if variable is None or variable.op != "VarHandleOp":
            return False
        shared = [node for node in self._all_nodes() if node.op == "VarHandleOp"
                  and node.attr["shared_name"].s == variable.attr["shared_name"].s]  # fmt: skip
        users = [node for node in self._graph.nodes.values() if name in map(_node_name, node.input)]
        values = [node.input[1] for node in users if node.op == "AssignVariableOp"]
        others = {node.op for node in users} - {"AssignVariableOp", "ReadVariableOp", "VarIsInitializedOp"}
        return len(shared) == 1 and not others and {self._known.get(_indexed(v)) for v in values} == {"asset"}

    def _all_nodes(self) -> Iterator[Any]:
        yield from self._graph.nodes.values()
        for function in self._functions.values():
            yield from function.node_def

    def _origin(self, scope: _Scope, tensor: str) -> Origin:
        """Return what a tensor is known to be, through ops that pass it on as it is."""
        for _ in range(len(scope.nodes) + 1):
            if scope is self._graph and _indexed(tensor) in self._known:
                return self._known[_indexed(tensor)]
            node = scope.nodes.get(_node_name(tensor))
            if node is None:
                return scope.arguments.get(tensor, "")
            if node.op == "ReadVariableOp" and scope is self._graph and self._holds_asset(node.input[0]):
                return "asset"
            if node.op != "Identity" or not node.input:
                return ""
            tensor = node.input[0]
        return ""
