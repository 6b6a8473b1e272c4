"""TFLite files: signatures, weights, operators and what runs outside of them, from the flatbuffer alone.

Field numbers are those of TensorFlow's ``tensorflow/compiler/mlir/lite/schema/schema.fbs``, and the names
in ``tflite_operators.txt`` its BuiltinOperator, a line for each number. What a builtin operator does is
LiteRT's own code; a custom one's is in some library.
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from ..manifest import measure_artifact
from ..signature import DEFAULT_SIGNATURE, Shape, Signature, TensorSpec
from . import operations
from .flatbuffer import Table, damaged, read
from .graph_audit import leaves_folder
from .report import Expected, ExternalFile, Finding, Model, merged, printable
from .tflite_metadata import NAMES, read_metadata

IDENTIFIER = b"TFL3"
# Tensors, operators and what they take; each may be four bytes in a file, if many offsets lead to one place.
_MAX_OBJECTS = 2_000_000
_MAX_RANK, _MAX_PLACES, _MAX_ENTRIES, _MAX_ENTRY_BYTES = 32, 3, 1000, 2**24

_DTYPES = (
    *("float32", "float16", "int32", "uint8", "int64", "string", "bool", "int16", "complex64", "int8", "float64"),
    *("complex128", "uint64", "resource", "variant", "uint32", "uint16", "int4", "bfloat16", "int2", "uint4"),
    *("float8_e4m3fn", "float8_e5m2"),
)
_FLOATS = ("float32", "float16", "bfloat16", "float64")
_SMALL = ("int8", "uint8", "int4", "uint4", "int2")
# What LiteRT's own resolver registers beside the builtin operators.
_KNOWN_CUSTOM = ("TFLite_Detection_PostProcess", "AudioSpectrogram", "Mfcc", "NumericVerify")


@dataclass(frozen=True)
class _Tensor:
    name: str
    dtype: str
    shape: Shape
    buffer: int
    count: int  # of numbers, if it is a constant
    constant: bool
    quantization: tuple[float, int] | None
    scaled: bool


def inspect_tflite(path: Path) -> Model:
    """What is in a TFLite file. Raises `ArtifactError` that names the file if it is none, or is damaged."""
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) < 8:
                raise ArtifactError(f"{path} is not a TFLite file: it is {'cut off' if file.tell() else 'empty'}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _inspect(path, data)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error


def _inspect(path: Path, data: mmap.mmap) -> Model:
    if data[4:8] != IDENTIFIER:
        raise ArtifactError(f"{path} is not a TFLite file: the identifier TFL3 is missing")
    try:
        file = _File(Table(data, read("I", data, 0)), data)
        findings, expected = file.audit(path.parent)
        weights, activations = file.weights(), file.activations()
        said = read_metadata(file.entries, path)
        signatures = file.signatures()
        version = str(file.root.number(0))
        description = printable(file.root.content(3, 4000))
        external = tuple(file.external(path.parent))
    except ArtifactError as error:
        raise ArtifactError(f"{path} is not a sound TFLite file: {error}") from error
    sha256, size = measure_artifact(path.parent, path.name)
    return Model(
        path=str(path),
        format="tflite",
        bytes=size,
        sha256=sha256,
        signatures=signatures,
        parameters=sum(weights.values()),
        parameters_in="constants",
        ops=dict(file.ops.most_common()),
        quantization=file.quantization(weights),
        weights=weights,
        activations=activations,
        producers={"schema": version, **said.producers},
        metadata={**({"file description": description} if description else {}), **said.metadata},
        external=external,
        findings=merged(findings),
        expected=expected,
    )


class _File:
    """The parts of a file that the questions are about. Its methods raise `ArtifactError`."""

    def __init__(self, root: Table, data: mmap.mmap) -> None:
        self.root = root
        self._buffers = [_extent(buffer, len(data)) for buffer in root.tables(4)]
        self._codes = [_operator(code) for code in root.tables(1)]
        self.ops: Counter[str] = Counter()
        self.subgraphs: list[tuple[str, list[_Tensor], Table]] = []
        self._places: dict[str, list[str]] = {}
        self._left = _MAX_OBJECTS
        self._floats_inside = False
        for number, subgraph in enumerate(root.tables(2)):
            name = printable(subgraph.content(4, 1000)) or f"subgraph {number}"
            # Spent before they are read: all subgraphs may be one.
            self._spend(1 + subgraph.vector(0, 4)[1] + subgraph.vector(3, 4)[1])
            tensors = [self._tensor(tensor) for tensor in subgraph.tables(0)]
            self.subgraphs.append((name, tensors, subgraph))
            for operator in subgraph.tables(3):
                self._count(operator, name, tensors)
        if not self.subgraphs:
            raise ArtifactError("it has no subgraph")
        self.entries = self._entries(data)

    def _spend(self, objects: int) -> None:
        self._left -= objects
        if self._left < 0:
            raise damaged()

    def _count(self, operator: Table, subgraph: str, tensors: list[_Tensor]) -> None:
        code = self._codes[_within(operator.number(0), self._codes)]
        self.ops[code] += 1
        places = self._places.setdefault(code, [])
        if subgraph not in places and len(places) < _MAX_PLACES:
            places.append(subgraph)
        self._spend(operator.vector(1, 4)[1] + operator.vector(2, 4)[1])
        ends = (*operator.numbers(1), *operator.numbers(2))
        if code not in ("QUANTIZE", "DEQUANTIZE") and not self._floats_inside:
            used = (tensors[_within(number, tensors)] for number in ends if number >= 0)
            self._floats_inside = any(tensor.dtype in _FLOATS for tensor in used)

    def _tensor(self, tensor: Table) -> _Tensor:
        sizes, open_sizes = tensor.numbers(0, limit=_MAX_RANK), tensor.numbers(7, limit=_MAX_RANK)
        buffer, dtype = tensor.number(2), tensor.number(1, "b")
        constant = bool(buffer and self._buffers[_within(buffer, self._buffers)][1]) or bool(tensor.number(10))
        quantization, scaled = None, False
        details = tensor.table(4)
        if details is not None:
            scales, zeros = details.numbers(2, "f", 2), details.numbers(3, "q", 1)
            scaled = any(scales)
            if len(scales) == 1 and scales[0]:
                quantization = (scales[0], zeros[0] if zeros else 0)
        return _Tensor(
            name=printable(tensor.content(3, 4000)),
            dtype=_DTYPES[dtype] if 0 <= dtype < len(_DTYPES) else f"dtype {dtype}",
            shape=tuple(None if size < 0 else size for size in open_sizes or sizes),
            buffer=buffer,
            count=math.prod(sizes) if constant and min(sizes, default=0) >= 0 else 0,
            constant=constant,
            quantization=quantization,
            scaled=scaled,
        )

    def _entries(self, data: mmap.mmap) -> dict[str, bytes]:
        """The file's metadata: by name, the content of a buffer."""
        found = {}
        for entry in self.root.tables(6, _MAX_ENTRIES):
            name = printable(entry.content(0, 1000))
            if name in NAMES and name not in found:
                start, size = self._buffers[_within(entry.number(1), self._buffers)]
                found[name] = data[start : start + min(size, _MAX_ENTRY_BYTES)]
        return found

    def signatures(self) -> dict[str, Signature]:
        """Its signatures, or one with the names of the tensors, as LiteRT takes them where it has none."""
        found = {}
        for definition in self.root.tables(7):
            self._spend(1 + definition.vector(0, 4)[1] + definition.vector(1, 4)[1])
            _, tensors, _ = self.subgraphs[_within(definition.number(4), self.subgraphs)]
            sides: list[dict[str, TensorSpec]] = []
            for side in (0, 1):
                specs = (
                    _spec(printable(item.content(0, 4000)), tensors[_within(item.number(1), tensors)])
                    for item in definition.tables(side)
                )
                sides.append({spec.name: spec for spec in specs})
            name = printable(definition.content(2, 4000))
            found[name] = Signature(inputs=sides[0], outputs=sides[1], name=name)
        if found:
            return found
        _, tensors, main = self.subgraphs[0]
        inputs, outputs = (
            {spec.name: spec for spec in self._main_specs(main.numbers(field), tensors)} for field in (1, 2)
        )
        return {DEFAULT_SIGNATURE: Signature(inputs, outputs)}

    @staticmethod
    def _main_specs(numbers: tuple[int, ...], tensors: list[_Tensor]) -> Iterator[TensorSpec]:
        for number in numbers:
            tensor = tensors[_within(number, tensors)]
            yield _spec(tensor.name.rsplit(":", 1)[0], tensor)

    def weights(self) -> dict[str, int]:
        """Numbers in constants that are weights, by dtype; one that several tensors share counts once."""
        found: Counter[str] = Counter()
        shared: set[int] = set()
        for _, tensors, _ in self.subgraphs:
            for tensor in tensors:
                if not tensor.constant or tensor.buffer in shared:
                    continue
                if tensor.dtype in _FLOATS or tensor.scaled:  # other integers are shapes, axes, tables
                    found[tensor.dtype] += tensor.count
                    shared.add(tensor.buffer)
        return dict(found.most_common())

    def activations(self) -> dict[str, int]:
        """Tensors that are computed, by dtype."""
        found = Counter(tensor.dtype for _, tensors, _ in self.subgraphs for tensor in tensors if not tensor.constant)
        return dict(found.most_common())

    def quantization(self, weights: Mapping[str, int]) -> str:
        """In words: of which kind the weights are, and the activations."""
        scaled = {t.dtype for _, tensors, _ in self.subgraphs for t in tensors if not t.constant and t.scaled}
        small = [name for name in _SMALL if weights.get(name)]
        if not small:
            half = 0 < weights.get("float16", 0) >= weights.get("float32", 0)
            return "float16 weights" if half else max(weights, key=lambda name: weights[name], default="none")
        kinds = ", ".join(small)
        if "int16" in scaled:
            return f"{kinds} weights, int16 activations{self._floats_left()}"
        if scaled & {"int8", "uint8"}:
            full = "full integer: " if not self._floats_left() else ""
            return f"{full}{kinds} weights and activations{self._floats_left()}"
        return f"dynamic range: {kinds} weights, float activations"

    def _floats_left(self) -> str:
        """Says so if an operator other than those at the ends computes on floats."""
        return ", partly float" if self._floats_inside else ""

    def audit(self, folder: Path) -> tuple[list[Finding], tuple[Expected, ...]]:
        """What runs code outside of LiteRT, and what looks like it and does not."""
        findings, expected = [], []
        for name, count in self.ops.items():
            places = tuple(self._places[name])
            if name == "STABLEHLO_CUSTOM_CALL":
                findings.append(Finding("code", name, "calls a native function by its name", places, count))
            if not name.startswith("custom "):
                continue
            custom = name.removeprefix("custom ")
            if custom in _KNOWN_CUSTOM:
                expected.append(Expected(custom, "a custom operator of LiteRT itself", count))
            elif custom.startswith("Flex"):
                findings.append(_flex(custom, places, count))
            else:
                findings.append(Finding("custom", custom, "some library has its code", places, count))
        findings += [
            Finding("outside", "external data", "weights in a file outside of the folder", ("model",), detail=file.path)
            for file in self.external(folder)
            if leaves_folder(file.path)
        ]
        return findings, tuple(expected)

    def external(self, folder: Path) -> Iterator[ExternalFile]:
        """Files that hold weights of this one."""
        for group in self.root.tables(8):
            name = printable(group.content(0, 4000))
            file = folder / name
            inside = not leaves_folder(name) and file.is_file()
            yield ExternalFile(name, file.stat().st_size if inside else None)


def _flex(custom: str, places: tuple[str, ...], count: int) -> Finding:
    """A TensorFlow operation, run by TensorFlow's own code."""
    rule = operations.RULES.get(custom.removeprefix("Flex"))
    if rule is not None:
        return Finding(rule.kind, custom, f"{rule.why}, by TensorFlow (Flex delegate)", places, count)
    return Finding("custom", custom, "an operation of TensorFlow: needs the Flex delegate", places, count)


@cache
def _builtins() -> tuple[str, ...]:
    text = resources.files(__package__).joinpath("tflite_operators.txt").read_text(encoding="ascii")
    return tuple(text.split())


def _operator(code: Table) -> str:
    # Numbers up to 126 are in the older field too; newer ones have a placeholder there.
    number = max(code.number(0, "b"), code.number(3, "i"))
    names = _builtins()
    name = names[number] if 0 <= number < len(names) else f"operator {number}"
    return f"custom {printable(code.content(1, 4000))}" if name == "CUSTOM" else name


def _extent(buffer: Table, size: int) -> tuple[int, int]:
    """Where the content of a buffer is: in the flatbuffer, or behind it."""
    start, length = buffer.vector(0, 1)
    offset = buffer.number(1, "Q")
    if offset > 1:  # 1 is a placeholder of the converter's
        start, length = offset, buffer.number(2, "Q")
    if start + length > size:
        raise damaged()
    return start, length


def _within(number: int, items: Any) -> int:
    if not 0 <= number < len(items):
        raise damaged()
    return number


def _spec(name: str, tensor: _Tensor) -> TensorSpec:
    return TensorSpec(name, tensor.dtype, tensor.shape, tensor_name=tensor.name, quantization=tensor.quantization)
