"""ONNX files: signature, weights, operators and what they refer to, without the weights of other files.

Messages and dtypes are those of ONNX's ``onnx/onnx.proto``; operators of its own domains are computed
by the engine, those of other domains by some library (https://onnx.ai/onnx/intro/concepts.html).
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from ..manifest import measure_artifact
from ..signature import DEFAULT_SIGNATURE, Signature, TensorSpec
from ..wire import messages
from . import protobuf
from .graph_audit import leaves_folder
from .report import Expected, ExternalFile, Finding, Model, merged, printable

_DTYPES = (
    *("undefined", "float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "string", "bool", "float16"),
    *("float64", "uint32", "uint64", "complex64", "complex128", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz"),
    *("float8_e5m2", "float8_e5m2fnuz", "uint4", "int4", "float4_e2m1fn", "float8_e8m0fnu", "uint2", "int2"),
)
_STANDARD = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training")
# ONNX Runtime's own, in every build of it; other engines do not have them.
_RUNTIME = ("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc", "com.microsoft.experimental")
# What runs Python or PyTorch inside of an engine: ONNX Runtime's training, and onnxruntime-extensions.
_CODE = ("PythonOp", "PythonOpGrad", "PyOp", "PyCustomOp", "ATen")

_DYNAMIC = {"MatMulInteger", "ConvInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
# Inputs that are scales and zero points, by operator: they are no weights.
_SCALES = {
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), (1, 2)),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QGemm": (1, 2, 4, 5, 7, 8),
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), (1, 2, 4, 5, 6, 7)),
    **dict.fromkeys(("QLinearSigmoid", "QLinearSoftmax", "QLinearGlobalAveragePool"), (1, 2, 3, 4)),
    **dict.fromkeys(("MatMulInteger", "ConvInteger"), (2, 3)),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
    "DynamicQuantizeMatMul": (2, 3),
    "MatMulNBits": (2, 3),
}
_SMALL = ("int8", "uint8", "int4", "uint4", "int2", "uint2", "int16", "uint16")
_NO_WEIGHTS = ("int64", "int32", "uint32", "uint64", "bool", "string", "undefined")


def inspect_onnx(path: Path) -> Model:
    """What is in an ONNX file. Raises `ArtifactError` that names the file if it is none, or is damaged."""
    model = protobuf.parse_file(path, messages.ModelProto, "an ONNX file")
    if not model.HasField("graph") or not model.ir_version:
        raise ArtifactError(f"{path} is not an ONNX file: it has no graph")
    parts = _Parts(model)
    external = tuple(_external(parts.tensors, path.parent))
    findings, expected = _audit(model, parts, external, path.parent)
    try:
        sha256, size = measure_artifact(path.parent, path.name)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    weights = parts.weights()
    ops = Counter(_title(node) for node, _ in parts.nodes)
    return Model(
        path=str(path),
        format="onnx",
        bytes=size,
        sha256=sha256,
        signatures={DEFAULT_SIGNATURE: _signature(model.graph)},
        parameters=sum(weights.values()),
        parameters_in="constants",
        ops=dict(ops.most_common()),
        quantization=_quantization(parts, weights),
        weights=weights,
        opsets={_domain(item.domain): item.version for item in model.opset_import},
        producers=_producers(model),
        metadata=_metadata(model),
        external=external,
        findings=merged(findings),
        expected=expected,
    )


class _Parts:
    """All nodes of a file with the part that they stand in, and all tensors that are constants."""

    def __init__(self, model: Any) -> None:
        self.nodes: list[tuple[Any, str]] = []
        self.tensors: list[tuple[str, Any]] = []
        todo: deque[tuple[Any, str]] = deque([(model.graph, "main graph")])
        todo += [(graph, "training") for info in model.training_info for graph in (info.initialization, info.algorithm)]
        todo += [(function, f"function {printable(function.name)}") for function in model.functions]
        while todo:
            part, place = todo.popleft()
            if part.DESCRIPTOR.name == "GraphProto":
                self.tensors += [(tensor.name, tensor) for tensor in part.initializer]
                self.tensors += [(each.values.name, each.values) for each in part.sparse_initializer]
                self.tensors += [("", each.indices) for each in part.sparse_initializer]
            for node in part.node:
                self.nodes.append((node, place))
                name = node.output[0] if node.op_type == "Constant" and node.output else ""
                todo += self._in_attributes(node.attribute, name, f"{printable(node.op_type)} in {place}")
            if part.DESCRIPTOR.name == "FunctionProto":
                todo += self._in_attributes(part.attribute_proto, "", place)

    def _in_attributes(self, attributes: Iterable[Any], name: str, place: str) -> Iterator[tuple[Any, str]]:
        """Collect the tensors, and give the graphs."""
        for attribute in attributes:
            # Where a field is not set, it is an empty tensor or graph.
            sparse = [attribute.sparse_tensor, *attribute.sparse_tensors]
            inner = (part for each in sparse for part in (each.values, each.indices))
            tensors = (attribute.t, *attribute.tensors, *inner)
            self.tensors += [(name, tensor) for tensor in tensors if tensor.data_type or tensor.external_data]
            yield from ((graph, place) for graph in (attribute.g, *attribute.graphs) if graph.node or graph.initializer)

    def weights(self) -> dict[str, int]:
        """Numbers in constants that are weights, by dtype."""
        scales: set[str] = set()
        dequantized: set[str] = set()
        for node, _ in self.nodes:
            places = _SCALES.get(node.op_type, ())
            scales.update(name for place, name in enumerate(node.input) if place in places)
            if node.op_type in ("DequantizeLinear", "QLinearConv", "QGemm"):
                dequantized.update(node.input)
        # ONNX Runtime's dynamic quantization multiplies by them elsewhere.
        scales.update(
            name.removesuffix("_quantized") + "_scale" for name, _ in self.tensors if name.endswith("_quantized")
        )
        found: Counter[str] = Counter()
        for name, tensor in self.tensors:
            dtype = _dtype(tensor.data_type)
            if (name and name in scales) or (dtype in _NO_WEIGHTS and not (dtype == "int32" and name in dequantized)):
                continue  # integers are shapes and axes, unless they are the biases of a quantized layer
            if min(tensor.dims, default=0) >= 0:
                found[dtype] += math.prod(tensor.dims)
        return dict(found.most_common())


def _title(node: Any) -> str:
    name = printable(node.op_type)
    return name if node.domain in ("", "ai.onnx") else f"{printable(node.domain)}.{name}"


def _domain(domain: str) -> str:
    return printable(domain) or "ai.onnx"


def _dtype(number: int) -> str:
    return _DTYPES[number] if 0 <= number < len(_DTYPES) else f"dtype {number}"


def _signature(graph: Any) -> Signature:
    # Until IR version 4, weights were inputs too.
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [_spec(item) for item in graph.input if item.name not in weights]
    return Signature({spec.name: spec for spec in inputs}, {item.name: item for item in map(_spec, graph.output)})


def _spec(item: Any) -> TensorSpec:
    tensor = item.type.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    dtype = _dtype(tensor.elem_type) if item.type.HasField("tensor_type") else "no tensor"
    return TensorSpec(printable(item.name), dtype, shape)


def _quantization(parts: _Parts, weights: dict[str, int]) -> str:
    """In words: how a file is quantized, told from its operators and the dtypes of its weights."""
    names = {node.op_type for node, _ in parts.nodes}
    small = ", ".join(name for name in _SMALL if weights.get(name))
    if names.intersection(_DYNAMIC):
        return f"dynamic range: {small or 'integer'} weights, activations quantized as they come"
    if any(name.startswith("QLinear") or name == "QGemm" for name in names):
        return f"{small or 'integer'} weights and activations, in quantized operators (QOperator)"
    if "QuantizeLinear" in names:
        return f"{small or 'integer'} weights and activations, around float operators (QDQ)"
    if "DequantizeLinear" in names or "MatMulNBits" in names:
        return f"{small or 'integer'} weights, float activations"
    half = 0 < weights.get("float16", 0) >= weights.get("float32", 0)
    return "float16" if half else max(weights, key=lambda name: weights[name], default="none")


def _producers(model: Any) -> dict[str, str]:
    name = " ".join(printable(text) for text in (model.producer_name, model.producer_version) if text)
    return {**({"producer": name} if name else {}), "ir_version": str(model.ir_version)}


def _metadata(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = {printable(item.key): printable(item.value) for item in model.metadata_props}
    said = {"graph": model.graph.name, "domain": model.domain, "description": model.doc_string}
    return {**{name: printable(text) for name, text in said.items() if text}, **found}


def _external(tensors: Iterable[tuple[str, Any]], folder: Path) -> Iterator[ExternalFile]:
    """The files with the values of tensors, each once. Outside of the folder none is looked at."""
    seen = set()
    for _, tensor in tensors:
        if tensor.data_location != tensor.EXTERNAL:
            continue
        location = next((item.value for item in tensor.external_data if item.key == "location"), "")
        if location in seen:
            continue
        seen.add(location)
        file = folder / location
        inside = bool(location) and not leaves_folder(location) and file.is_file()
        yield ExternalFile(printable(location), file.stat().st_size if inside else None)


def _audit(
    model: Any, parts: _Parts, external: Iterable[ExternalFile], folder: Path
) -> tuple[list[Finding], tuple[Expected, ...]]:
    findings: list[Finding] = []
    expected: Counter[str] = Counter()
    local = {(function.domain, function.name) for function in model.functions}
    for node, place in parts.nodes:
        if node.op_type in _CODE:
            findings.append(Finding("code", _title(node), "runs Python or PyTorch code", (place,)))
        elif node.domain in _RUNTIME:
            expected[_title(node)] += 1
        elif node.domain not in _STANDARD and (node.domain, node.op_type) not in local:
            why = "no domain of ONNX: some library has the code"
            findings.append(Finding("custom", _title(node), why, (place,)))
    for file in external:
        if leaves_folder(file.path) or not file.path:
            why = "weights in a file outside of the model's folder"
        elif file.bytes is None:
            why = "weights in a file that is not there"
        elif not (folder / file.path).resolve().is_relative_to(folder.resolve()):
            why = "weights in a file that a link puts outside of the model's folder"
        else:
            continue
        findings.append(Finding("outside", "external data", why, ("tensors",), detail=file.path))
    why = "an operator of ONNX Runtime itself; other engines do not have it"
    return findings, tuple(Expected(op, why, count) for op, count in sorted(expected.items()))
