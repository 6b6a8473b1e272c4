"""The audit of a SavedModel's graph: every node of the main graph and of every function, as it is called.

Whether a file operation belongs where it is depends on where its path comes from. Paths are followed
from the main graph into the functions: the one that the loader gives to the saver (SaverDef), and those
of the model's own assets (AssetFileDef).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from google.protobuf.message import DecodeError

from ..wire import messages
from ..wire.tensors import BY_NAME
from . import operations
from .operations import ASSET_OPS, RULES, SAVER_OPS
from .report import Finding, Kind, printable

_MAIN = "main graph"
_STRING = BY_NAME["string"].number
# How many nodes are looked at, functions once for each call that differs, before arguments count as unknown.
_MAX_LOOKS = 1_000_000
_MAX_DEPTH = 100

_BY_POSITION = ("PartitionedCall", "StatefulPartitionedCall", "While", "StatelessWhile")
_BEHIND_A_CHOICE = ("If", "StatelessIf", "Case", "StatelessCase")
# What savers do to a path; whatever else it goes through makes it a path of the model's own.
_PATH_OPS = frozenset({
    *("Identity", "StringJoin", "ShardedFilename", "ShardedFilespec", "Select", "SelectV2", "StaticRegexFullMatch"),
    *("PlaceholderWithDefault", "Pack", "ExpandDims", "Reshape"),
})  # fmt: skip
_HANDLES = ("VarHandleOp", "_VarHandlesOp", "_XlaAotOnlyVarHandleOp")
_INIT_SIGNATURE = "__saved_model_init_op"
_ASSETS = "saved_model_assets"
_INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op")

_SAVER_WHY = "saves and restores the variables, under the path that the loader gives"
_ASSET_WHY = "reads an asset of the model"


@dataclass(frozen=True)
class _Origin:
    """Where a string comes from: the loader (saver, asset), a harmless constant (text), or elsewhere (other)."""

    kind: str
    text: str = ""


_OTHER, _SAVER, _ASSET = _Origin("other"), _Origin("saver"), _Origin("asset")


@dataclass(frozen=True)
class _Call:
    """A function with the origins of its arguments, and whether loading or a signature runs it."""

    function: str
    arguments: tuple[_Origin, ...]
    at_load: bool
    served: bool


@dataclass
class _Body:
    """The main graph or a function: its nodes by name, and what of it is known from outside.

    ``held`` has, for variables that nothing else touches, the sources of what is assigned to them.
    """

    nodes: dict[str, Any]
    given: dict[str, _Origin]
    held: dict[str, list[str]] = field(default_factory=dict)
    origins: dict[str, _Origin] = field(default_factory=dict)

    def origin(self, source: str, depth: int = 0) -> _Origin:
        """Where the value of an input such as ``node:output:0`` comes from."""
        name = source.split(":", 1)[0]
        if name not in self.origins:
            if name in self.given:
                self.origins[name] = self.given[name]
            elif depth > _MAX_DEPTH or name not in self.nodes:
                return _OTHER
            else:
                self.origins[name] = _OTHER  # for a graph that leads back to itself
                self.origins[name] = self._computed(self.nodes[name], depth)
        return self.origins[name]

    def _computed(self, node: Any, depth: int) -> _Origin:
        if node.op == "Const":
            return _constant(node)
        if node.op == "ReadVariableOp" and node.input:
            sources = self.held.get(node.input[0].split(":", 1)[0], [])
            return _ASSET if {self.origin(source, depth + 1) for source in sources} == {_ASSET} else _OTHER
        if node.op not in _PATH_OPS:
            return _OTHER
        parts = [self.origin(source, depth + 1) for source in node.input if not source.startswith("^")]
        if node.op in ("Select", "SelectV2"):
            parts = parts[1:]  # which of them is taken must make no difference
        kinds = {part.kind for part in parts}
        if len(parts) == 1:
            return parts[0]
        if kinds == {"text"}:
            return _Origin("text", "…")
        if parts and parts[0] == _SAVER and kinds <= ({"saver"} if "Select" in node.op else {"saver", "text"}):
            return _SAVER
        return _ASSET if kinds == {"asset"} else _OTHER


def audit(graph: Any) -> tuple[list[Finding], Counter[tuple[str, str]]]:
    """The findings in a MetaGraphDef, one for each node, and how often what belongs there does.

    The second is by operation and reason.
    """
    findings: list[Finding] = []
    expected: Counter[tuple[str, str]] = Counter()
    for (function, _), (node, verdicts) in _verdicts(graph).items():
        worst = next((verdict for verdict in verdicts if isinstance(verdict, Finding)), None)
        if worst is not None:
            at_load = any(isinstance(verdict, Finding) and verdict.at_load for verdict in verdicts)
            place = f"function {printable(function)}" if function else _MAIN
            findings.append(Finding(worst.kind, worst.op, worst.why, (place,), detail=worst.detail, at_load=at_load))
        else:
            expected[printable(node.op), str(verdicts[0])] += 1
    return findings, expected


_Verdicts = dict[tuple[str, str], tuple[Any, list[Finding | str]]]


def _verdicts(graph: Any) -> _Verdicts:
    """By function and node, for each call: a finding, or the reason why there is none."""
    found: _Verdicts = {}
    library = {function.signature.name: function for function in graph.graph_def.library.function}
    main = _Body({node.name: node for node in graph.graph_def.node}, _given(graph), _held(graph.graph_def))
    served, at_load = _roots(graph, main)
    waiting: deque[_Call] = deque()
    seen: set[_Call] = set()
    looks = 0

    def look(function: str, body: _Body, node: Any, loads: bool, serves: bool) -> None:
        verdict = _verdict(node, body, library, at_load=loads, served=serves)
        if verdict is not None:
            found.setdefault((function, node.name), (node, []))[1].append(verdict)
        waiting.extend(_Call(name, arguments, loads, serves) for name, arguments in _calls(node, body, library))

    for node in graph.graph_def.node:
        look("", main, node, node.name in at_load, node.name in served)
    called: set[str] = set()
    rest = iter(library)
    while True:
        if not waiting:  # what the graph does not call, an object of the model may
            name = next((name for name in rest if name not in called), None)
            if name is None:
                return found
            waiting.append(_Call(name, (), at_load=False, served=False))
        call = waiting.popleft()
        if looks > _MAX_LOOKS:
            call = replace(call, arguments=())
        if call in seen:
            continue
        seen.add(call)
        called.add(call.function)
        function = library[call.function]
        looks += len(function.node_def)
        names = [argument.name for argument in function.signature.input_arg]
        given = dict.fromkeys(names, _OTHER) | dict(zip(names, call.arguments, strict=False))
        body = _Body({node.name: node for node in function.node_def}, given)
        for node in function.node_def:
            look(call.function, body, node, call.at_load, call.served)


def assets(graph: Any) -> list[Any]:
    """The AssetFileDef messages of a MetaGraphDef; TensorFlow 1 keeps them in a collection."""
    found = list(graph.asset_file_def)
    if not found and _ASSETS in graph.collection_def:
        for each in graph.collection_def[_ASSETS].any_list.value:
            with suppress(DecodeError):  # of another type, which TensorFlow refuses to load
                found.append(messages.AssetFileDef.FromString(each.value))
    return found


def _given(graph: Any) -> dict[str, _Origin]:
    """The nodes of the main graph whose value the loader gives."""
    given = {}
    for asset in assets(graph):
        if not leaves_folder(asset.filename):
            given[asset.tensor_info.name.split(":", 1)[0]] = _ASSET
    if graph.saver_def.filename_tensor_name:
        given[graph.saver_def.filename_tensor_name.split(":", 1)[0]] = _SAVER
    return given


def _held(graph: Any) -> dict[str, list[str]]:
    """Variables of the main graph that are only read and assigned there: TensorFlow 2 keeps paths of assets so."""
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    names = Counter(
        b"".join(operations.attribute_texts(node, "shared_name")) or node.name.encode()
        for node in nodes
        if node.op in _HANDLES
    )
    found: dict[str, list[str]] = {
        node.name: []
        for node in graph.node
        if node.op == "VarHandleOp"
        and names[b"".join(operations.attribute_texts(node, "shared_name")) or node.name.encode()] == 1
    }
    for node in graph.node:
        for place, source in enumerate(node.input):
            name = source.split(":", 1)[0]
            if name in found and node.op == "AssignVariableOp" and place == 0 and len(node.input) > 1:
                found[name].append(node.input[1])
            elif name in found and node.op not in ("ReadVariableOp", "VarIsInitializedOp"):
                del found[name]
    return found


def leaves_folder(path: str) -> bool:
    """Whether a path that should stay in a folder may lead out of it, on any system."""
    parts = {*PurePosixPath(path).parts, *PureWindowsPath(path).parts}
    rooted = PurePosixPath(path).is_absolute() or PureWindowsPath(path).anchor != ""
    return rooted or ".." in parts or "://" in path or "\0" in path


def _roots(graph: Any, main: _Body) -> tuple[set[str], set[str]]:
    """The nodes that a signature runs, and those that loading the model runs."""
    served: list[str] = []
    at_load: list[str] = []
    for name, signature in graph.signature_def.items():
        outputs = [output.name for output in signature.outputs.values()]
        (at_load if name == _INIT_SIGNATURE else served).extend(outputs)
    for name in _INIT_COLLECTIONS:
        if name in graph.collection_def:
            at_load += graph.collection_def[name].node_list.value
    # Initialization must not use the saver's operations either.
    served += at_load
    at_load.append(graph.saver_def.restore_op_name)
    return _upstream(served, main), _upstream(at_load, main)


def _upstream(sources: list[str], body: _Body) -> set[str]:
    seen: set[str] = set()
    todo = [source.lstrip("^").split(":", 1)[0] for source in sources]
    while todo:
        name = todo.pop()
        if name in body.nodes and name not in seen:
            seen.add(name)
            todo += [source.lstrip("^").split(":", 1)[0] for source in body.nodes[name].input]
    return seen


def _calls(node: Any, body: _Body, library: dict[str, Any]) -> Iterator[tuple[str, tuple[_Origin, ...]]]:
    """The functions that a node calls, with the origins of their arguments; none where they are not known."""
    inputs = [source for source in node.input if not source.startswith("^")]
    if node.op in library:
        yield node.op, tuple(body.origin(source) for source in inputs)
    if not node.attr:
        return
    arguments: tuple[_Origin, ...] = ()
    functions = [name for value in node.attr.values() for name in functions_of(value) if name in library]
    if functions and node.op in (*_BY_POSITION, *_BEHIND_A_CHOICE):
        arguments = tuple(body.origin(source) for source in inputs[node.op in _BEHIND_A_CHOICE :])
    for name in functions:
        yield name, arguments


def functions_of(value: Any) -> Iterator[str]:
    """Names of the functions in an attribute, also in the attributes of those."""
    todo = [value]
    while todo:
        value = todo.pop()
        kind = value.WhichOneof("value")
        for function in [value.func] if kind == "func" else value.list.func if kind == "list" else ():
            yield function.name
            todo += function.attr.values()


def _verdict(node: Any, body: _Body, library: dict[str, Any], *, at_load: bool, served: bool) -> Finding | str | None:
    rule = RULES.get(node.op)
    if rule is None:
        if node.op in operations.known() or node.op in library:
            return None
        return _finding(node, "custom", "no operation of TensorFlow 2.21: some library has its code", at_load=at_load)
    texts = operations.attribute_texts(node, rule.attribute) if rule.attribute else []
    if rule.attribute and not [text for text in texts if rule.only_if is None or rule.only_if(text)]:
        return None
    paths = [source for source in node.input if not source.startswith("^")]
    origin = body.origin(paths[rule.path]) if rule.path is not None and rule.path < len(paths) else _OTHER
    if node.op in SAVER_OPS and origin.kind == "saver" and not served:
        return _SAVER_WHY
    if node.op in ASSET_OPS and origin.kind == "asset":
        return _ASSET_WHY
    if node.op.startswith("CacheDataset") and origin == _Origin("text"):
        return None  # without a path it keeps them in memory
    detail = ", ".join(printable(text) for text in texts) if texts else origin.text
    return _finding(node, rule.kind, rule.why, detail, at_load=at_load)


def _finding(node: Any, kind: Kind, why: str, detail: str = "", *, at_load: bool) -> Finding:
    return Finding(kind, printable(node.op), why, (), detail=detail, at_load=at_load)


def _constant(node: Any) -> _Origin:
    """Of strings, only what cannot lead elsewhere is harmless within a path."""
    tensor = node.attr["value"].tensor
    texts = [text.decode("utf-8", "replace") for text in tensor.string_val]
    if tensor.dtype == _STRING and tensor.tensor_content:
        return _OTHER  # nobody writes strings so
    shown = printable(", ".join(texts[:3]))
    return _Origin("other" if any(map(leaves_folder, texts)) else "text", shown)
