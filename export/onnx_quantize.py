"""Smaller ONNX files, made from the float32 one: float16 weights, and int8 by calibration.

float16 is how the weights are stored; the arithmetic stays float32, as in TFLite's float16 files.
Graphs that compute in float16 are no more exact, overflow at 65504, and run up to 1.5 times slower on
a CPU, where ONNX Runtime casts to float32 and back around most nodes.

int8 is ONNX Runtime's static quantization to QDQ nodes (``onnxruntime.quantization``), with choices
that were measured against their alternatives:

- Weights use 7 of the 8 bits, with a scale for each channel. On x86 without VNNI, ONNX Runtime sums two
  products in 16 bits. With 8 bits they saturate, which cost a small CNN with batch norms nine points
  of accuracy; with 7 bits they cannot.
- Activations are uint8. With int8 ones, ONNX Runtime 1.32 on x86 leaves convolutions of residual
  blocks in float32; the answers are the same.
- Ranges are the minimum and maximum over the calibration rows. Entropy and percentiles were no more
  exact, and keep the activations of all rows in memory.
- What a MatMul or Gemm answers stays float32, and so does what follows the last layer with weights:
  no logit, probability or regression is rounded to one of 256 steps.
- Recurrent layers (LSTM, and the Loop of another cell) get int8 weights and keep float32 activations.
  The steps of an unrolled layer can be quantized as any MatMul, but those files were larger than the
  float32 ones.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import extras
from ..errors import ExportError, UnimplementedError

if TYPE_CHECKING:
    import onnx

Array = NDArray[Any]

# What a weight is stored as: tensors, and the node that makes the weight of them. None keeps it as it is.
Encoded: TypeAlias = "tuple[list[onnx.TensorProto], onnx.NodeProto] | None"

# Layers that ONNX Runtime runs on integers; their second input is the weight.
_INTEGER = ("Conv", "Gemm", "MatMul")
# What hands on or picks out 8-bit values: quantized on the way to one of the above.
_PASSING = (
    "AveragePool",
    "Clip",
    "Concat",
    "Flatten",
    "Gather",
    "GlobalAveragePool",
    "MaxPool",
    "Pad",
    "Relu",
    "Reshape",
    "Resize",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
# Layers that compute in float32, whatever their weights are stored as.
_FLOATING = ("ConvTranspose", "Einsum", "GRU", "LSTM", "Loop", "RNN", "Scan")

# A batch of calibration rows: small rows together, large pictures one by one.
_BATCH_BYTES = 1 << 20
_BATCH_ROWS = 64

# About what the node and the names take that make float32 of a stored weight.
_NODE_BYTES = 256

# The first in which DequantizeLinear has a scale for each channel.
_LEAST_OPSET = 13

_PURPOSE = "exporting to ONNX"


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model with its weights stored as float16, which computes in float32.

    Weights are the float32 initializers of two or more dimensions that a layer takes. One that
    float16 cannot hold to a thousandth of its largest value (beyond 65504, or all of it tiny) stays
    float32. Inputs and outputs (names, dtypes, dynamic batch), opset and ``metadata_props`` stay.

    Raises `UnimplementedError` if no weight can become float16, and `ExportError` if the model is not
    valid ONNX.
    """
    onnx = extras.load("onnx", _PURPOSE)

    def encode(name: str, array: Array) -> Encoded:
        with np.errstate(over="ignore", invalid="ignore"):
            half = array.astype(np.float16)
            error = np.abs(half.astype(np.float32) - array).max(initial=0)
        if not error <= np.abs(array).max(initial=0) / 1024:  # not for NaN either
            return None
        stored = onnx.numpy_helper.from_array(half, f"{name}_float16")
        return [stored], onnx.helper.make_node("Cast", [stored.name], [name], to=onnx.TensorProto.FLOAT)

    small = onnx.ModelProto()
    small.CopyFrom(model)
    if not _store_weights(small, (*_INTEGER, *_FLOATING, "Gather"), encode):
        raise _without_weights(model, "has no layer with float32 weights that float16 can hold")
    _check(small)
    return small


def to_int8(model: onnx.ModelProto, calibration: Mapping[str, Array]) -> onnx.ModelProto:
    """A copy of the model, statically quantized: QDQ nodes, int8 weights, float32 inputs and outputs.

    ``calibration`` has rows for each input, batch first, in the input's dtype: some hundred like
    those to come. They are run in batches of about a megabyte, so that memory does not grow with
    their number. Inputs and outputs (names, dtypes, dynamic batch), opset and ``metadata_props`` stay.

    Raises `UnimplementedError` if there is nothing to quantize, and `ExportError` if the calibration
    data do not fit the inputs, or if ONNX Runtime cannot run or quantize the model.
    """
    onnx = extras.load("onnx", _PURPOSE)
    ort = extras.load("onnxruntime", _PURPOSE)
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < _LEAST_OPSET:
        raise ExportError(f"{_label(model)} has opset {opset}; int8 takes {_LEAST_OPSET} or higher")
    batches = _Batches(model, calibration)
    try:
        with tempfile.TemporaryDirectory(prefix="servable-") as name, _quiet(ort):
            folder = Path(name)
            _optimize(ort, model, folder / "float32.onnx")
            _quantize(onnx, folder / "float32.onnx", batches, folder / "int8.onnx")
            small = onnx.load(folder / "int8.onnx")
    except OSError:
        raise
    except Exception as error:  # ONNX, ONNX Runtime and its quantizer raise every kind
        raise ExportError(f"{_label(model)} cannot be quantized to int8: {_reason(error)}") from error

    def encode(name: str, array: Array) -> Encoded:
        channels = array.shape[1]
        if array.nbytes <= array.size + 5 * channels + _NODE_BYTES:
            return None
        # Nothing multiplies these as integers, so that all 8 bits are of use.
        others = tuple(axis for axis in range(array.ndim) if axis != 1)
        scale = np.abs(array).max(axis=others, keepdims=True) / np.float32(127)
        scale[scale == 0] = 1
        parts = {
            f"{name}_int8": np.rint(array / scale).astype(np.int8),
            f"{name}_scale": scale.ravel(),
            f"{name}_zero_point": np.zeros(channels, np.int8),
        }
        stored = [onnx.numpy_helper.from_array(part, key) for key, part in parts.items()]
        return stored, onnx.helper.make_node("DequantizeLinear", list(parts), [name], axis=1)

    _store_weights(small, _FLOATING, encode)
    if _eight_bit_matrices(small) <= _eight_bit_matrices(model):
        raise _without_weights(model, "has nothing to quantize: no layer has one matrix or kernel of float32 weights")
    _tidy(small, model)
    _check(small)
    return small


class _Batches:
    """Calibration rows as the quantizer asks for them: a batch at each call, then None."""

    def __init__(self, model: onnx.ModelProto, calibration: Mapping[str, Array]) -> None:
        first = {value.name: value.type.tensor_type.shape.dim[:1] for value in model.graph.input}
        if set(first) != set(calibration):
            given = ", ".join(calibration) or "nothing"
            raise ExportError(f"{_label(model)} takes {', '.join(first)}; the calibration data are for {given}")
        counts = {name: len(array) for name, array in calibration.items()}
        rows = min(counts.values())
        if rows == 0 or rows != max(counts.values()):
            told = ", ".join(f"{count} for {name}" for name, count in counts.items())
            raise ExportError(f"{_label(model)} needs calibration rows, as many for each input; there are {told}")
        for name, array in calibration.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ExportError(f"the calibration data for {name} of {_label(model)} hold NaN or infinity")
        row_bytes = sum(array.nbytes for array in calibration.values()) // rows
        size = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, row_bytes)))
        fixed = max((dim.dim_value for dims in first.values() for dim in dims), default=0)
        self._batches = (
            # A batch of fixed size is filled up from the first rows; it is the same range.
            {name: array.take(range(start, start + fixed), axis=0, mode="wrap") for name, array in calibration.items()}
            if fixed
            else {name: array[start : start + size] for name, array in calibration.items()}
            for start in range(0, rows, fixed or size)
        )

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


@contextmanager
def _quiet(ort: Any) -> Iterator[None]:
    """Drop what the quantizer logs: it uses the root logger, and would set that up if nobody has."""
    home = str(Path(ort.__file__).parent)
    root, handler = logging.getLogger(), logging.NullHandler()

    def not_its(record: logging.LogRecord) -> bool:
        return not record.pathname.startswith(home)

    root.addFilter(not_its)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.removeFilter(not_its)


def _optimize(ort: Any, model: onnx.ModelProto, path: Path) -> None:
    """Write the model as ONNX Runtime simplifies it for all processors: batch norms folded, Gemm for MatMul and Add."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _quantize(onnx: Any, source: Path, batches: _Batches, target: Path) -> None:
    """Write the quantized model. By files, because the quantizer empties a ModelProto that it is given."""
    from onnxruntime.quantization import QuantType, quantize_static

    model = onnx.load(source)
    excluded = _excluded(model.graph)
    if len(excluded) == len(model.graph.node):
        onnx.save(model, target)
        return
    onnx.save(model, source)
    quantize_static(
        source,
        target,
        batches,
        # ONNX Runtime 1.19 fails where a Softmax was not calibrated; all of them are excluded.
        op_types_to_quantize=[*_INTEGER, *_PASSING, "Softmax"],
        nodes_to_exclude=excluded,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
    )


def _excluded(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes to leave in float32; a node that has no name gets one.

    These are layers without a constant weight (attention), or with a stack of them, which ONNX Runtime
    loads and then fails to run; look-ups in a table that is another layer's weight too and cannot be
    of two types; and all that does not lead to a layer with weights.
    """
    weights = {tensor.name: len(tensor.dims) for tensor in graph.initializer if tensor.data_type == tensor.FLOAT}
    users = defaultdict(set)
    for node in graph.node:
        for name in node.input:
            users[name].add(node.op_type)
    excluded = []
    leading: set[str] = set()
    for number in reversed(range(len(graph.node))):
        node = graph.node[number]
        if node.op_type in _INTEGER:
            constant = node.input[1] in weights and node.input[0] not in weights
            leads = constant and (node.op_type != "MatMul" or weights[node.input[1]] == 2)
        elif node.op_type == "Gather" and node.input[0] in weights:
            leads = users[node.input[0]] == {"Gather"}
        else:
            leads = not leading.isdisjoint(node.output)
        if leads:
            leading.update(node.input)
        if not leads or node.op_type == "Softmax":
            node.name = node.name or f"node_{number}"
            excluded.append(node.name)
    return excluded


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those inside its nodes: the bodies of Loop, Scan and If."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(inner)


def _matrices(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All initializers of two or more dimensions."""
    for graph in _graphs(model.graph):
        yield from (tensor for tensor in graph.initializer if len(tensor.dims) > 1)


def _eight_bit_matrices(model: onnx.ModelProto) -> int:
    return sum(tensor.data_type in (tensor.INT8, tensor.UINT8) for tensor in _matrices(model))


def _store_weights(model: onnx.ModelProto, layers: Iterable[str], encode: Callable[[str, Array], Encoded]) -> int:
    """Store the weights of these layers as ``encode`` says, in place; the answer is how many it took."""
    onnx = extras.load("onnx", _PURPOSE)
    graphs = list(_graphs(model.graph))
    taken = {name for graph in graphs for node in graph.node if node.op_type in layers for name in node.input}
    count = 0
    for graph in graphs:
        for number in reversed(range(len(graph.initializer))):
            tensor = graph.initializer[number]
            if tensor.name not in taken or tensor.data_type != tensor.FLOAT or len(tensor.dims) < 2:
                continue
            encoded = encode(tensor.name, onnx.numpy_helper.to_array(tensor))
            if encoded:
                del graph.initializer[number]
                graph.initializer.extend(encoded[0])
                graph.node.insert(0, encoded[1])
                count += 1
    return count


def _tidy(small: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Take out the notes that optimizer and quantizer leave, and shorten the names that they make.

    Such a name is the original's two or three times, and small models are mostly names: it halves
    their files. The names of the original graph stay.
    """
    domains = {node.domain for graph in _graphs(small.graph) for node in graph.node}
    for number in reversed(range(len(small.opset_import))):
        if small.opset_import[number].domain not in domains:
            del small.opset_import[number]
    del small.metadata_props[:]
    small.metadata_props.extend(model.metadata_props)
    small.producer_name, small.producer_version = model.producer_name, model.producer_version
    del small.graph.value_info[:]

    # Bodies see the names of the graph around them, and are left alone.
    bodies = itertools.islice(_graphs(small.graph), 1, None)
    kept = {name for graph in (model.graph, *bodies) for node in graph.node for name in (*node.input, *node.output)}
    fresh = (name for name in map("q{}".format, itertools.count()) if name not in kept)
    names: dict[str, str] = {name: name for name in (*kept, "")}  # "" is an optional input that is not given

    def shorten(name: str) -> str:
        if name not in names:
            names[name] = next(fresh)
        return names[name]

    known = {node.name for node in model.graph.node}
    for node in small.graph.node:
        node.input[:] = [shorten(name) for name in node.input]
        node.output[:] = [shorten(name) for name in node.output]
        if node.name not in known:
            node.name = ""
    for tensor in small.graph.initializer:
        tensor.name = shorten(tensor.name)


def _check(model: onnx.ModelProto) -> None:
    onnx = extras.load("onnx", _PURPOSE)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{_label(model)} is not valid ONNX: {_reason(error)}") from error


def _without_weights(model: onnx.ModelProto, what: str) -> UnimplementedError:
    onnx = extras.load("onnx", _PURPOSE)
    kinds = {onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name for tensor in _matrices(model)}
    held = f"; it has matrices of {', '.join(sorted(kinds))}" if kinds else ""
    return UnimplementedError(f"{_label(model)} {what}{held}")


def _label(model: onnx.ModelProto) -> str:
    """What messages call the model: the name that the exporter wrote into it, or its graph's."""
    props: dict[str, str] = {entry.key: entry.value for entry in model.metadata_props}
    graph: str = model.graph.name
    return props.get("servable.model") or graph or "the ONNX model"


def _reason(error: Exception) -> str:
    """An error in one line, without ONNX Runtime's ``[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : ``."""
    text = str(error).strip() or type(error).__name__
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    return textwrap.shorten(text, 240, placeholder=" …")
