"""The variables of a SavedModel: how many numbers of which dtype, from the index of its checkpoint.

``variables/variables.index`` is a table as LevelDB has them (its ``doc/table_format.md``; in TensorFlow
``tensorflow/core/lib/io/format.cc``), without compression: a BundleHeaderProto under the empty key and a
BundleEntryProto for each tensor (``tensorflow/core/util/tensor_bundle``). Names that begin with a zero
byte are parts of a tensor that has an entry of its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from ..wire import messages
from ..wire.tensors import BY_NUMBER
from . import protobuf

_FOOTER_BYTES = 48
_MAGIC = 0xDB4775248B80FB57
_TRAILER_BYTES = 5  # behind each block: how it is compressed, and a checksum
_MAX_INDEX_BYTES = 2**28
_MAX_KEY_BYTES = 2**28  # of all names together: each may repeat the one before it
_WHAT = "an index of variables"

# Names that optimizers of TensorFlow 1 give to what they keep beside a variable.
_SLOTS = ("Adadelta", "Adagrad", "Adam", "ExponentialMovingAverage", "Ftrl", "Momentum", "RMSProp")
# Where checkpoints of TensorFlow 2 say what belongs to what, and attributes of Keras models without weights.
_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"
_TRAINING = ("optimizer", "_optimizer", "keras_api")
# Large integers count steps or are states of random generators; quantized weights are small ones.
_NO_WEIGHTS = ("string", "int32", "int64", "uint32", "uint64", "qint32")


@dataclass(frozen=True)
class _Variable:
    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int


def count_weights(folder: Path) -> Mapping[str, int]:
    """How many numbers the variables of a SavedModel hold, by dtype; empty if it has none.

    What was kept for the training does not count, where it can be told: optimizers and what they keep,
    metrics, counters and states of random generators. Constants of a frozen graph are not variables.
    Raises `ArtifactError` for variables that are damaged, cut off or compressed.
    """
    path = folder / "variables" / "variables.index"
    if not path.is_file():
        return {}
    shards, variables = _read_index(path)
    _check_shards(path, shards, variables)
    if _OBJECTS in variables:
        names = _tracked(_read_objects(path, shards, variables[_OBJECTS]), path)
    else:
        names = {name for name in variables if not _is_slot(name, variables)}
    # Keras 3's export writes each variable a second time.
    twice = any(name.startswith("variables/") for name in names)
    weights: Counter[str] = Counter()
    for name in names & variables.keys():
        variable = variables[name]
        if variable.dtype not in _NO_WEIGHTS and not (twice and name.startswith("_all_variables/")):
            weights[variable.dtype] += math.prod(variable.shape)
    return weights


def _read_index(path: Path) -> tuple[int, dict[str, _Variable]]:
    """The number of files with the values, and the tensors by name."""
    try:
        size = path.stat().st_size
        if size > _MAX_INDEX_BYTES:
            raise ArtifactError(f"{path} is not {_WHAT}: it is larger than {_MAX_INDEX_BYTES >> 20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    shards, variables = 0, {}
    for key, value in _table(data, path):
        if not key:
            header = protobuf.parse(value, messages.BundleHeaderProto, path, _WHAT)
            shards = header.num_shards
        elif not key.startswith(b"\0"):
            entry = protobuf.parse(value, messages.BundleEntryProto, path, _WHAT)
            row = BY_NUMBER.get(entry.dtype)
            shape = tuple(dim.size for dim in entry.shape.dim)
            if min(shape, default=0) < 0:
                raise _damaged(path)
            dtype = row.name if row else f"dtype {entry.dtype}"
            variables[key.decode("utf-8", "replace")] = _Variable(
                dtype, shape, entry.shard_id, entry.offset, entry.size
            )
    if shards < 1:
        raise _damaged(path)
    return shards, variables


def _table(data: bytes, path: Path) -> Iterator[tuple[bytes, bytes]]:
    """The pairs of a table: blocks of pairs, and one block with the places of the others."""
    if len(data) < _FOOTER_BYTES or int.from_bytes(data[-8:], "little") != _MAGIC:
        raise _damaged(path)
    footer = data[-_FOOTER_BYTES:]
    _, _, position = _handle(footer, 0, path)
    offset, size, _ = _handle(footer, position, path)
    names = 0
    for _, handle in _block(data, offset, size, path):
        offset, size, _ = _handle(handle, 0, path)
        for key, value in _block(data, offset, size, path):
            names += len(key)
            if names > _MAX_KEY_BYTES:
                raise _damaged(path)
            yield key, value


def _block(data: bytes, offset: int, size: int, path: Path) -> Iterator[tuple[bytes, bytes]]:
    end = offset + size
    if end + _TRAILER_BYTES > len(data) or size < 4:
        raise _damaged(path)
    if data[end] != 0:
        raise ArtifactError(f"{path} is compressed, which TensorFlow never writes; save the model again")
    restarts = int.from_bytes(data[end - 4 : end], "little")
    end -= 4 * (restarts + 1)
    key, position = b"", offset
    while position < end:
        shared, position = _varint(data, position, path)
        fresh, position = _varint(data, position, path)
        length, position = _varint(data, position, path)
        if shared > len(key) or position + fresh + length > end:
            raise _damaged(path)
        key = key[:shared] + data[position : position + fresh]
        position += fresh
        yield key, data[position : position + length]
        position += length


def _handle(data: bytes, position: int, path: Path) -> tuple[int, int, int]:
    """Offset and size of a block, and where the handle ends."""
    offset, position = _varint(data, position, path)
    size, position = _varint(data, position, path)
    return offset, size, position


def _varint(data: bytes, position: int, path: Path) -> tuple[int, int]:
    try:
        return protobuf.varint(data, position, len(data))
    except protobuf.NotWellFormedError as error:
        raise _damaged(path) from error


def _shard(path: Path, number: int, shards: int) -> Path:
    return path.with_name(f"variables.data-{number:05d}-of-{shards:05d}")


def _check_shards(path: Path, shards: int, variables: Mapping[str, _Variable]) -> None:
    """Raise `ArtifactError` unless every value lies within its file."""
    ends: Counter[int] = Counter()
    for variable in variables.values():
        if min(variable.shard, variable.offset, variable.size) < 0 or variable.shard >= shards:
            raise _damaged(path)
        ends[variable.shard] = max(ends[variable.shard], variable.offset + variable.size)
    for number, end in sorted(ends.items()):
        shard = _shard(path, number, shards)
        try:
            size = shard.stat().st_size
        except OSError as error:
            raise ArtifactError(f"{shard} cannot be read: {error.strerror or error}") from error
        if size < end:
            raise ArtifactError(f"{shard} is cut off: it has {size} bytes of {end}")


def _read_objects(path: Path, shards: int, entry: _Variable) -> bytes:
    """The one string of that tensor: its length, a checksum of the length, its bytes."""
    if entry.size > protobuf.MAX_BYTES:
        raise _damaged(path)
    with _shard(path, entry.shard, shards).open("rb") as file:
        file.seek(entry.offset)
        content = file.read(entry.size)
    length, position = _varint(content, 0, path)
    if position + 4 + length != len(content):
        raise _damaged(path)
    return content[position + 4 :]


def _tracked(content: bytes, path: Path) -> set[str]:
    """Keys in a TF2 checkpoint of the variables that are found without looking into an optimizer.

    The keys alone do not tell: a weight may be found on the way through the optimizer first.
    """
    graph = protobuf.parse(content, messages.TrackableObjectGraph, path, _WHAT).nodes
    seen, todo = {0}, [0]
    while todo:
        number = todo.pop()
        if not 0 <= number < len(graph):
            raise _damaged(path)
        found = {child.node_id for child in graph[number].children if child.local_name not in _TRAINING}
        todo += found - seen
        seen |= found
    attributes: Iterator[Any] = (attribute for number in seen for attribute in graph[number].attributes)
    return {attribute.checkpoint_key for attribute in attributes if attribute.name == "VARIABLE_VALUE"}


def _is_slot(name: str, variables: Mapping[str, _Variable]) -> bool:
    """Whether an optimizer of TensorFlow 1 has given the name."""
    parent, _, last = name.rpartition("/")
    known = variables.get(parent)
    beside = last.partition("_")[0] in _SLOTS and known is not None and known.shape == variables[name].shape
    return beside or last in ("beta1_power", "beta2_power")


def _damaged(path: Path) -> ArtifactError:
    return ArtifactError(f"{path} is damaged: it is not {_WHAT}")
