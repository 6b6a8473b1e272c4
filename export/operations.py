"""Which TensorFlow operations a signature of a SavedModel runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from .. import extras
from ..inspection.graph_audit import functions_of

LOOPS = frozenset({"While", "StatelessWhile", "Enter", "NextIteration"})


def operations(folder: Path, signature: str, tag: str = "serve") -> Counter[str]:
    """Operations by type, with those in the functions that the signature calls, each function once.

    Reads ``saved_model.pb`` or ``saved_model.pbtxt``, not the weights.
    """
    extras.load("tensorflow", "reading a SavedModel")
    proto = import_module("tensorflow.python.saved_model.loader_impl").parse_saved_model(str(folder))
    graph = next(meta for meta in proto.meta_graphs if tag in meta.meta_info_def.tags)
    library = {function.signature.name: function.node_def for function in graph.graph_def.library.function}
    nodes = {node.name: node for node in graph.graph_def.node}
    outputs = graph.signature_def[signature].outputs.values()
    waiting = [nodes[info.name.split(":")[0]] for info in outputs if info.name]
    seen = {node.name for node in waiting}
    called: set[str] = set()
    found: Counter[str] = Counter()
    while waiting:
        node = waiting.pop()
        found[node.op] += 1
        for name in (source.lstrip("^").split(":")[0] for source in node.input):
            if name in nodes and name not in seen:
                seen.add(name)
                waiting.append(nodes[name])
        functions = list(_functions(node))
        while functions:
            function = functions.pop()
            if function in library and function not in called:
                called.add(function)
                for inner in library[function]:
                    found[inner.op] += 1
                    functions.extend(_functions(inner))
    return found


def _functions(node: Any) -> Iterator[str]:
    """Names of the functions that a node calls."""
    for value in node.attr.values():
        yield from functions_of(value)
