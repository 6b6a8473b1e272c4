"""SavedModels: signatures, weights, operations and their audit, from the files alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from ..errors import ArtifactError
from ..manifest import measure_artifact
from ..signature import Signature, TensorSpec
from ..wire import messages
from ..wire.signatures import from_signature_def
from ..wire.tensors import BY_NUMBER
from . import protobuf
from .graph_audit import assets, audit
from .report import Expected, Finding, Model, merged, printable
from .variables import count_weights

BINARY, TEXT = "saved_model.pb", "saved_model.pbtxt"
_WHAT = "a SavedModel"
# Text is parsed in Python, a megabyte a second or so.
_MAX_TEXT_BYTES = 2**25
_SERVE = frozenset({"serve"})
# TensorFlow keeps what initializes a model among its signatures.
_INTERNAL = "__saved_model_"
_FLOATS = ("float32", "float16", "bfloat16", "float64")
# Where Keras 2 says which layers a model had; a Lambda layer's has the bytecode of its function.
_KERAS, _LAMBDA = "keras_metadata.pb", b'"class_name": "Lambda"'


def inspect_saved_model(folder: Path) -> Model:
    """What is in a SavedModel folder; all of its graphs count, the signatures are those that servers load.

    Raises `ArtifactError` that names the file at fault.
    """
    graphs = _read(folder)
    served = next((graph for graph in graphs if frozenset(graph.meta_info_def.tags) == _SERVE), graphs[0])
    ops: Counter[str] = Counter()
    findings: list[Finding] = []
    expected: Counter[tuple[str, str]] = Counter()
    for graph in graphs:
        ops.update(node.op for node in _nodes(graph.graph_def))
        found, belongs = audit(graph)
        findings += found
        expected.update(belongs)
    findings += _lambdas(folder)
    variables = count_weights(folder)
    weights = variables or _constants(_nodes(served.graph_def))
    sha256, size = _measure(folder)
    info = served.meta_info_def
    return Model(
        path=str(folder),
        format="saved_model",
        bytes=size,
        sha256=sha256,
        signatures=_signatures(served),
        parameters=sum(weights.values()),
        parameters_in="variables" if variables else "constants",
        ops={printable(name): count for name, count in ops.most_common()},
        quantization=_quantization(weights, ops),
        weights=dict(weights),
        producers=_producers(info, served.graph_def),
        metadata=_metadata(graphs),
        findings=merged(findings),
        expected=tuple(Expected(op, why, count) for (op, why), count in sorted(expected.items())),
    )


def _read(folder: Path) -> Any:
    """The graphs of a SavedModel, which has at least one."""
    path = folder / BINARY
    if path.is_file() or not (folder / TEXT).is_file():
        graphs = protobuf.parse_file(path, messages.SavedModel, _WHAT).meta_graphs
    else:
        path = folder / TEXT
        graphs = _parse_text(path).meta_graphs
    if not graphs:
        raise ArtifactError(f"{path} is not {_WHAT}: it has no graph")
    return graphs


def _parse_text(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_TEXT_BYTES:
            raise ArtifactError(f"{path} is larger than {_MAX_TEXT_BYTES >> 20} MiB; give the model as {BINARY}")
        return text_format.Parse(
            path.read_bytes(), messages.SavedModel(), allow_unknown_field=True, descriptor_pool=messages.POOL
        )
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    except (text_format.ParseError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ArtifactError(f"{path} is not {_WHAT}, or is damaged: {printable(str(error))}") from error


def _measure(folder: Path) -> tuple[str, int]:
    try:
        return measure_artifact(folder, ".")
    except OSError as error:
        raise ArtifactError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from error


def _nodes(graph: Any) -> Iterator[Any]:
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def _signatures(graph: Any) -> dict[str, Signature]:
    found = {}
    for name in sorted(graph.signature_def):
        if not name.startswith(_INTERNAL):
            signature = from_signature_def(printable(name), graph.signature_def[name])
            found[signature.name] = Signature(
                inputs=_printable_specs(signature.inputs),
                outputs=_printable_specs(signature.outputs),
                method_name=printable(signature.method_name),
                name=signature.name,
            )
    return found


def _printable_specs(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    clean = (
        TensorSpec(printable(spec.name), spec.dtype, spec.shape, tensor_name=printable(spec.tensor_name))
        for spec in specs.values()
    )
    return {spec.name: spec for spec in clean}


def _constants(nodes: Iterable[Any]) -> Counter[str]:
    """The numbers in a frozen graph, by dtype."""
    found: Counter[str] = Counter()
    for node in nodes:
        if node.op == "Const" and "value" in node.attr:
            tensor = node.attr["value"].tensor
            row = BY_NUMBER.get(tensor.dtype)
            sizes = [dim.size for dim in tensor.tensor_shape.dim]
            if row and row.name in _FLOATS and min(sizes, default=0) >= 0:
                found[row.name] += math.prod(sizes)
    return found


def _quantization(weights: Mapping[str, int], ops: Mapping[str, int]) -> str:
    kind = max(weights, key=lambda name: weights[name], default="none")
    if any(op.startswith("FakeQuantWith") for op in ops):
        return f"{kind}, trained for quantization (FakeQuant operations)"
    if any(op.startswith("UniformQuantize") for op in ops):
        return f"{kind}, quantized by TensorFlow (UniformQuantized operations)"
    return kind


def _producers(info: Any, graph: Any) -> dict[str, str]:
    found = {"tensorflow": info.tensorflow_version, "git": info.tensorflow_git_version}
    number = graph.versions.producer
    return {
        **{name: printable(version) for name, version in found.items() if version},
        **({"graph version": str(number)} if number else {}),
    }


def _metadata(graphs: Iterable[Any]) -> dict[str, Any]:
    tags = [sorted(printable(tag) for tag in graph.meta_info_def.tags) for graph in graphs]
    files = sorted({printable(asset.filename) for graph in graphs for asset in assets(graph)})
    return {"tags": tags, **({"assets": files} if files else {})}


def _lambdas(folder: Path) -> Iterator[Finding]:
    path = folder / _KERAS
    try:
        count = path.read_bytes().count(_LAMBDA) if path.is_file() and path.stat().st_size < _MAX_TEXT_BYTES else 0
    except OSError:
        return  # no server reads it
    if count:
        why = "Python code that keras.models.load_model would run; servers do not"
        yield Finding("code", "Lambda", why, (_KERAS,), count)
