"""A serialized PredictResponse written at once, without a message for each part of it.

For tensors whose packed encoding is the array's own bytes (floats, complex numbers, bools, and any
dtype as ``tensor_content``), all that stands before these bytes depends on name, dtype and shape
alone, and is kept. See https://protobuf.dev/programming-guides/encoding/ for the format.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import messages
from .tensors import BY_NAME, RAW_FIELDS, DType, dtype_of, encode, varint

# Tags of length-delimited fields.
_OUTPUTS, _MODEL_SPEC = b"\x0a", b"\x12"
_KEY, _VALUE = b"\x0a", b"\x12"
_TENSOR_CONTENT = 0x22


def serialize(
    name: str, version: int, signature_name: str, outputs: Mapping[str, tuple[NDArray[Any], str]], *, content: bool
) -> bytes:
    """The response of a model's version and signature; ``outputs`` are arrays with their wire dtypes.

    ``content`` puts the values into ``tensor_content``, else they go into typed fields. Raises
    `InputError` for a dtype that the interface cannot carry.
    """
    parts = [_model_spec(name, version, signature_name)]
    for alias, (array, dtype) in outputs.items():
        row = BY_NAME.get(dtype) or dtype_of(array)
        tag = _TENSOR_CONTENT if content else RAW_FIELDS.get(row.field)
        if tag is None or row.name == "string" or array.dtype != row.numpy:
            tensor = encode(array, dtype, content=content).SerializeToString()
            parts += (_entry(alias, len(tensor)), tensor)
        else:
            parts += (_head(alias, row, array.shape, tag), np.ascontiguousarray(array).tobytes())
    return b"".join(parts)


@lru_cache(maxsize=1024)
def _model_spec(name: str, version: int, signature_name: str) -> bytes:
    spec = messages.ModelSpec(name=name, signature_name=signature_name)
    spec.version.value = version
    data: bytes = spec.SerializeToString()
    return _MODEL_SPEC + _sized(data)


@lru_cache(maxsize=1024)
def _head(alias: str, row: DType, shape: tuple[int, ...], tag: int) -> bytes:
    """Everything of a map entry that stands before the array's bytes."""
    proto = messages.TensorProto(dtype=row.number)
    proto.tensor_shape.SetInParent()
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    size = int(np.prod(shape)) * row.numpy.itemsize
    head: bytes = proto.SerializeToString() + (bytes([tag]) + varint(size) if size else b"")
    return _entry(alias, len(head) + size) + head


def _entry(alias: str, size: int) -> bytes:
    """The beginning of a map entry whose value has ``size`` bytes."""
    key = _KEY + _sized(alias.encode())
    value = _VALUE + varint(size)
    return _OUTPUTS + varint(len(key) + len(value) + size) + key + value


def _sized(data: bytes) -> bytes:
    return varint(len(data)) + data
