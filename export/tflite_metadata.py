"""TFLite Metadata: names, descriptions, normalisation and labels, inside the ``.tflite`` file.

The format is public: ``mediapipe/tasks/metadata/metadata_schema.fbs`` of MediaPipe (schema version
1.5.0, file identifier ``M001``; before, in tflite-support), and ``tensorflow/lite/schema/schema.fbs``
(identifier ``TFL3``) for the model around it. A ``ModelMetadata`` flatbuffer is the content of one of
the model's buffers, the model's ``metadata`` entry ``TFLITE_METADATA`` names that buffer, and label
files follow the model as an uncompressed zip whose offsets count from the start of the file.

The model is not unpacked and packed again, which would cost its weights their alignment and the file
whatever TensorFlow's Python reader does not know. Offsets in a flatbuffer are relative and point
forward, so a finished one can be the tail of another: a new root table with new lists of buffers and
metadata goes before the unchanged bytes of the old file, and refers to what is in there.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import ArtifactError, ExportError, nearest
from ..inspection.flatbuffer import Table, damaged, read
from ..manifest import Preprocessing
from ..signature import DEFAULT_SIGNATURE
from .flatbuffer import Writer

_ENTRY = "TFLITE_METADATA"
_MODEL_IDENTIFIER = b"TFL3"
_METADATA_IDENTIFIER = b"M001"

# The newest of the fields that we write have been in the schema since its first version.
_MIN_PARSER_VERSION = "1.0.0"

# TensorFlow Lite's arenas align to this; a multiple of every alignment that the converter gives.
_ALIGNMENT = 64

# What signed 32-bit offsets reach; beyond it the converter puts weights outside the flatbuffer.
_MAX_SIZE = 2**31 - 1

# Field numbers of the tables, in the order of their schema.
_MODEL_VERSION, _MODEL_OPERATOR_CODES, _MODEL_SUBGRAPHS, _MODEL_BUFFERS, _MODEL_METADATA = 0, 1, 2, 4, 6
_MODEL_SIGNATURES, _MODEL_FIELDS = 7, 10
_SUBGRAPH_TENSORS, _SUBGRAPH_INPUTS, _SUBGRAPH_OUTPUTS = 0, 1, 2
_TENSOR_SHAPE, _TENSOR_SHAPE_SIGNATURE = 0, 7
_BUFFER_DATA, _BUFFER_OFFSET = 0, 1
_ENTRY_NAME, _ENTRY_BUFFER = 0, 1
_SIGNATURE_INPUTS, _SIGNATURE_OUTPUTS, _SIGNATURE_KEY, _SIGNATURE_SUBGRAPH = 0, 1, 2, 4
_MAP_NAME, _MAP_TENSOR = 0, 1

# Members of the metadata's enumerations and unions.
_TENSOR_AXIS_LABELS = 2
_FEATURE_PROPERTIES, _IMAGE_PROPERTIES = 1, 2
_NORMALIZATION_OPTIONS = 1
_COLOR_SPACES = {"RGB": 1, "GRAYSCALE": 2}


@dataclass(frozen=True)
class TensorMetadata:
    """What a file says of one input or output.

    ``name`` is the signature's name for the tensor. ``color_space`` makes it a picture; without, it is
    a tensor of features. ``mean`` and ``std`` say that the model wants ``(x - mean) / std``, for a
    picture with ``x`` in 0..255; ``min`` and ``max`` bound the values of the tensor itself. Each of the
    four has one value, or one for each channel (last axis). ``labels``, of outputs only, name the
    places along the last axis.
    """

    name: str
    description: str = ""
    color_space: Literal["RGB", "GRAYSCALE"] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    min: tuple[float, ...] | None = None
    max: tuple[float, ...] | None = None
    labels: tuple[str, ...] = ()


def image_input(preprocessing: Preprocessing, name: str, description: str = "") -> TensorMetadata:
    """The picture that ``preprocessing`` makes, as the input ``name``.

    ``pixel * scale + offset`` is written as ``(pixel - mean) / std``. Raises `ExportError` where the
    format has no words for the preprocessing: a scale of 0, or neither 1 nor 3 channels.
    """
    spaces: dict[int, Literal["RGB", "GRAYSCALE"]] = {1: "GRAYSCALE", 3: "RGB"}
    if preprocessing.channels not in spaces:
        raise ExportError(
            f"TFLite Metadata knows pictures of 1 or 3 channels; the input {name!r} has {preprocessing.channels}"
        )
    if preprocessing.scale == 0:
        raise ExportError(f"the preprocessing of the input {name!r} has a scale of 0, so every picture is the same")
    ends = sorted(pixel * preprocessing.scale + preprocessing.offset for pixel in (0, 255))
    return TensorMetadata(
        name=name,
        description=description,
        color_space=spaces[preprocessing.channels],
        mean=(0.0 - preprocessing.offset / preprocessing.scale,),  # 0.0 - 0.0 is 0.0, where -0.0 would be odd to read
        std=(1.0 / preprocessing.scale,),
        min=(ends[0],),
        max=(ends[1],),
    )


def pack(
    model: bytes,
    *,
    name: str,
    version: str,
    inputs: Sequence[TensorMetadata],
    outputs: Sequence[TensorMetadata],
    description: str = "",
    author: str = "",
    license: str = "",
    signature: str = DEFAULT_SIGNATURE,
) -> bytes:
    """The TFLite file ``model`` with metadata and label files in it; all else in it stays as it is.

    ``inputs`` and ``outputs`` describe every tensor of ``signature``, in any order. Labels are in
    ``labels.txt``, UTF-8, one a line; further outputs with other labels have ``labels_2.txt``, and so
    on. Raises `ExportError` if ``model`` is damaged, is not as the converter made it, has metadata
    already, or does not fit what is said of it, and `MissingExtraError` without the extra.
    """
    about = {0: name, 1: description, 2: version, 4: author, 5: license, 7: _MIN_PARSER_VERSION}
    try:
        root = _root(model)
        _check_packable(root)
        ordered_inputs, ordered_outputs = _in_order_of_file(root, signature, inputs, outputs)
        files = _label_files(ordered_outputs)
        metadata = _metadata(Writer(), about, ordered_inputs, ordered_outputs, files)
        head = _head(Writer(), root, metadata)
        if len(head) + len(model) > _MAX_SIZE:
            raise ExportError("a TFLite file with metadata must be smaller than 2 GiB; export it without metadata")
        packed = io.BytesIO()
        packed.write(head)
        packed.write(model)
        if files:
            _append(packed, files)
    except ExportError as error:
        raise ExportError(f"{name}: {error}") from error
    except ArtifactError as error:
        raise ExportError(f"{name}: the TFLite file is damaged; convert the model again") from error
    except UnicodeEncodeError as error:
        wrong = error.object[error.start : error.end]
        raise ExportError(f"{name}: {wrong!r} cannot be written as UTF-8; rename what has it") from error
    return packed.getvalue()


def _root(model: bytes) -> Table:
    if model[4:8] != _MODEL_IDENTIFIER:
        raise ExportError("this is not a TFLite file: the identifier TFL3 is missing; convert the model again")
    return Table(model, read("I", model, 0))


def _check_packable(root: Table) -> None:
    """Refuse what would come out wrong: damage, metadata already there, positions that would shift."""
    if any(root.has(field) for field in range(_MODEL_FIELDS, root.fields)):
        raise ExportError("the TFLite file is of a newer schema than this servable knows; upgrade servable")
    root.tables(_MODEL_OPERATOR_CODES)  # the converter's files end with them: a cut file lacks some
    for buffer in root.tables(_MODEL_BUFFERS):
        buffer.vector(_BUFFER_DATA, 1)
        # 1 is the converter's placeholder for no data.
        if buffer.number(_BUFFER_OFFSET, "Q") > 1:
            raise ExportError(
                "the TFLite file keeps weights outside its flatbuffer, as files over 2 GiB do; "
                "export it without metadata"
            )
    if any(entry.text(_ENTRY_NAME) == _ENTRY for entry in root.tables(_MODEL_METADATA)):
        raise ExportError("the TFLite file has metadata already; pack the file as the converter made it")


def _in_order_of_file(
    root: Table, signature: str, inputs: Sequence[TensorMetadata], outputs: Sequence[TensorMetadata]
) -> tuple[list[TensorMetadata], list[TensorMetadata]]:
    """Both in the order in which the main subgraph has its tensors; it may not be the signature's."""
    found = {item.text(_SIGNATURE_KEY): item for item in root.tables(_MODEL_SIGNATURES)}
    if signature not in found:
        raise ExportError(f"the TFLite file has no signature {signature!r}; {nearest(signature, found)}")
    subgraphs = root.tables(_MODEL_SUBGRAPHS)
    if not subgraphs or found[signature].number(_SIGNATURE_SUBGRAPH) != 0:
        raise ExportError(
            f"the signature {signature!r} is not the file's main one, and TFLite Metadata describes only that; "
            "convert this signature alone"
        )
    (main, *_), definition = subgraphs, found[signature]
    tensors = main.tables(_SUBGRAPH_TENSORS)
    return (
        _matched("input", main.numbers(_SUBGRAPH_INPUTS), definition.tables(_SIGNATURE_INPUTS), tensors, inputs),
        _matched("output", main.numbers(_SUBGRAPH_OUTPUTS), definition.tables(_SIGNATURE_OUTPUTS), tensors, outputs),
    )


def _matched(
    role: str,
    order: Sequence[int],
    maps: Sequence[Table],
    tensors: Sequence[Table],
    described: Sequence[TensorMetadata],
) -> list[TensorMetadata]:
    """``described`` in the order of the tensor numbers ``order``, checked against the tensors."""
    of_name = {tensor.name: tensor for tensor in described}
    names = [item.text(_MAP_NAME) for item in maps]
    if len(of_name) != len(described) or sorted(of_name) != sorted(names):
        raise ExportError(
            f"the signature's {role}s are {', '.join(sorted(names)) or 'none'}, "
            f"but those described are {', '.join(sorted(tensor.name for tensor in described)) or 'none'}"
        )
    # One tensor may have several names, if a model gives one result twice; the file lists it as often.
    of_index: dict[int, list[str]] = {}
    for item, name in zip(maps, names, strict=True):
        of_index.setdefault(item.number(_MAP_TENSOR), []).append(name)
    if sorted(order) != sorted(index for index, several in of_index.items() for _ in several):
        raise ExportError(f"the {role}s of the TFLite file are not those of its signature; convert the model again")
    if any(index not in range(len(tensors)) for index in order):
        raise damaged()
    result = []
    for index in order:
        tensor = of_name[of_index[index].pop(0)]
        _check(role, tensor, tensors[index])
        result.append(tensor)
    return result


def _check(role: str, said: TensorMetadata, tensor: Table) -> None:
    """Refuse what contradicts itself or the shape of the tensor."""
    what = f"the {role} {said.name!r}"
    shape = tensor.numbers(_TENSOR_SHAPE_SIGNATURE) or tensor.numbers(_TENSOR_SHAPE)
    last = shape[-1] if shape and shape[-1] >= 0 else None
    if said.color_space not in (None, *_COLOR_SPACES):
        raise ExportError(
            f"{what}: no color space {said.color_space!r}; {nearest(str(said.color_space), _COLOR_SPACES)}"
        )
    channels = 3 if said.color_space == "RGB" else 1
    if said.color_space and len(shape) == 4 and last not in (None, channels):
        raise ExportError(f"{what} has {last} channels, which is not {said.color_space}")
    for first, second in ("mean", "std"), ("min", "max"):
        one, other = getattr(said, first), getattr(said, second)
        if (one is None) != (other is None):
            raise ExportError(f"{what} has only one of {first} and {second}; give both or neither")
        if one is None:
            continue
        if len(one) != len(other) or len(one) not in (1, last):
            each = "channel" if last is None else f"of the {last} channels"
            raise ExportError(f"{what}: {first} and {second} need one value each, or one for each {each}")
        largest = float(np.finfo(np.float32).max)
        if not all(math.isfinite(value) and abs(value) <= largest for value in (*one, *other)):
            raise ExportError(f"{what}: {first} and {second} must be finite float32 values, got {one} and {other}")
    if said.std is not None and not np.asarray(said.std, np.float32).all():
        raise ExportError(f"{what}: a std of 0 would divide by zero")
    if said.labels:
        _check_labels(role, what, said.labels, last)


def _check_labels(role: str, what: str, labels: Sequence[str], last: int | None) -> None:
    if role != "output":
        raise ExportError(f"{what} has labels; only outputs can")
    if last is not None and last != len(labels):
        raise ExportError(f"{what} has {len(labels)} labels for a last axis of {last}; give one for each place")
    for label in labels:
        # Readers take a line for a label, and some skip blank ones: every label after it would shift.
        if not label.strip() or "\n" in label or "\r" in label:
            raise ExportError(f"{what}: the label {label!r} cannot be one line of a label file; rename it")


def _label_files(outputs: Iterable[TensorMetadata]) -> dict[tuple[str, ...], str]:
    """A file name for each list of labels; outputs with equal labels share a file."""
    files: dict[tuple[str, ...], str] = {}
    for output in outputs:
        if output.labels and output.labels not in files:
            files[output.labels] = f"labels_{len(files) + 1}.txt" if files else "labels.txt"
    return files


def _metadata(
    to: Writer,
    about: Mapping[int, str],
    inputs: Iterable[TensorMetadata],
    outputs: Iterable[TensorMetadata],
    files: Mapping[tuple[str, ...], str],
) -> bytes:
    """The ``ModelMetadata`` flatbuffer; ``about`` has its texts by field number."""
    both = [to.vector([_tensor(to, tensor, files) for tensor in tensors]) for tensors in (inputs, outputs)]
    subgraphs = to.vector([to.table({2: both[0], 3: both[1]})])
    texts = {field: to.text(value) for field, value in about.items()}
    return to.finish(to.table({**texts, 3: subgraphs}), _METADATA_IDENTIFIER)


def _tensor(to: Writer, tensor: TensorMetadata, files: Mapping[tuple[str, ...], str]) -> int:
    """A ``TensorMetadata`` table."""
    if tensor.color_space:
        properties = to.table({}, byte=(0, _COLOR_SPACES[tensor.color_space]))
        content = to.table({1: properties}, byte=(0, _IMAGE_PROPERTIES))
    else:
        content = to.table({1: to.table({})}, byte=(0, _FEATURE_PROPERTIES))
    units = stats = labels = None
    if tensor.mean is not None and tensor.std is not None:
        options = to.table({0: to.floats(tensor.mean), 1: to.floats(tensor.std)})
        units = to.vector([to.table({1: options}, byte=(0, _NORMALIZATION_OPTIONS))])
    if tensor.min is not None and tensor.max is not None:
        stats = to.table({0: to.floats(tensor.max), 1: to.floats(tensor.min)})
    if tensor.labels:
        said = to.text("One label a line, in the order of the last axis.")
        labels = to.vector([to.table({0: to.text(files[tensor.labels]), 1: said}, byte=(2, _TENSOR_AXIS_LABELS))])
    texts = {0: to.text(tensor.name), 1: to.text(tensor.description)}
    return to.table({**texts, 3: content, 4: units, 5: stats, 6: labels})


def _head(to: Writer, root: Table, metadata: bytes) -> bytes:
    """What goes before the old file: a new root table, and with it the buffer that holds ``metadata``.

    The old file begins where this ends, so to the builder, which counts from the end, its places are
    negative. The length is a multiple of all alignments in the old file.
    """
    to.builder.Prep(_ALIGNMENT, 0)
    old_buffers, old_entries = root.tables(_MODEL_BUFFERS), root.tables(_MODEL_METADATA)
    buffer = to.table({_BUFFER_DATA: to.content(metadata)})
    entry = to.table({_ENTRY_NAME: to.text(_ENTRY)}, uint=(_ENTRY_BUFFER, len(old_buffers)))
    fields: dict[int, int | None] = {}
    for field in range(_MODEL_VERSION + 1, _MODEL_FIELDS):
        place = root.target(field)
        fields[field] = None if place is None else -place
    fields[_MODEL_BUFFERS] = to.vector([*(-item.position for item in old_buffers), buffer])
    fields[_MODEL_METADATA] = to.vector([*(-item.position for item in old_entries), entry])
    model = to.table(fields, uint=(_MODEL_VERSION, root.number(_MODEL_VERSION)))
    return to.finish(model, _MODEL_IDENTIFIER)


def _append(packed: io.BytesIO, files: Mapping[tuple[str, ...], str]) -> None:
    """Append the label files, stored: readers on a device map them from the file as they are."""
    # Mode w begins at the current position, where a would search the model for an older archive.
    with zipfile.ZipFile(packed, "w") as archive:
        for labels, file_name in files.items():
            entry = zipfile.ZipInfo(file_name)  # of 1980-01-01, so that equal models make equal files
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, "".join(f"{label}\n" for label in labels).encode())
