"""What TFLite files say of themselves: TFLite Metadata with its label files, and the converter's notes.

Field numbers are those of MediaPipe's ``mediapipe/tasks/metadata/metadata_schema.fbs`` (identifier M001)
and of TensorFlow's ``tensorflow/compiler/mlir/lite/schema/conversion_metadata.fbs``.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .flatbuffer import Table, read
from .report import printable

_ENTRY, _CONVERSION, _RUNTIME = "TFLITE_METADATA", "CONVERSION_METADATA", "min_runtime_version"
NAMES = (_ENTRY, _CONVERSION, _RUNTIME)
_TEXTS = {"name": 0, "description": 1, "version": 2, "author": 4, "license": 5}
_NORMALIZATION = 1
_LABELS = (2, 3)  # TENSOR_AXIS_LABELS, TENSOR_VALUE_LABELS
_MAX_LABEL_BYTES = 2**24
_MAX_TENSORS, _MAX_UNITS, _MAX_CHANNELS = 256, 16, 4096


@dataclass(frozen=True)
class Said:
    """What a file says of who made it, and of itself."""

    producers: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


def read_metadata(entries: Mapping[str, bytes], path: Path) -> Said:
    """The metadata among the ``entries`` of a file at ``path``. Raises `ArtifactError` if they are damaged."""
    said = Said()
    runtime = printable(entries.get(_RUNTIME, b"").rstrip(b"\0"))
    if runtime:
        said.producers["min_runtime_version"] = runtime
    if entries.get(_CONVERSION):
        environment = _root(entries[_CONVERSION]).table(0)
        converter = printable(environment.content(0, 1000)) if environment else ""
        if converter:
            said.producers["tensorflow"] = converter
    content = entries.get(_ENTRY)
    if content:
        root = _root(content)
        for name, number in _TEXTS.items():
            text = printable(root.content(number, 4000))
            if text:
                said.metadata[name] = text
        for subgraph in root.tables(3)[:1]:  # the others describe what no signature calls
            for side, number in (("inputs", 2), ("outputs", 3)):
                said.metadata[side] = [_tensor(tensor, path) for tensor in subgraph.tables(number, _MAX_TENSORS)]
    return said


def _root(content: bytes) -> Table:
    return Table(content, read("I", content, 0))


def _tensor(tensor: Table, path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"name": printable(tensor.content(0, 4000))}
    description = printable(tensor.content(1, 4000))
    if description:
        found["description"] = description
    for unit in tensor.tables(4, _MAX_UNITS):
        options = unit.table(1)
        if unit.number(0, "B") == _NORMALIZATION and options is not None:
            found["mean"] = list(options.numbers(0, "f", _MAX_CHANNELS))
            found["std"] = list(options.numbers(1, "f", _MAX_CHANNELS))
    for file in tensor.tables(6, _MAX_UNITS)[:1]:
        if file.number(2, "B") in _LABELS:
            name = file.content(0, 4000).decode("utf-8", "replace")
            found["labels"] = _count_labels(name, path) or f"{printable(name)} is missing or damaged"
    return found


def _count_labels(name: str, path: Path) -> int:
    """How many labels the file of this name has, in the archive behind the model; 0 if it has none."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(name).file_size > _MAX_LABEL_BYTES:
                return 0
            with archive.open(name) as file:
                return len(file.read(_MAX_LABEL_BYTES).decode("utf-8", "replace").splitlines())
    except (KeyError, OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return 0  # no archive, or a damaged one: the model runs without it
