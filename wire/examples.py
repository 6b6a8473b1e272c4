"""tf.Example messages: written from arrays, and parsed into dense features without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..signature import TensorSpec
from . import messages
from .tensors import BY_NAME, as_bytes


def encode(features: Mapping[str, NDArray[Any]]) -> bytes:
    """One serialized tf.Example; each feature is a flat list of floats, integers or strings.

    Raises `InputError` for complex numbers, which tf.Example cannot hold.
    """
    example = messages.Example()
    for name, array in features.items():
        feature = example.features.feature[name]
        flat = np.ravel(array)
        if flat.dtype.kind == "f":
            feature.float_list.value.extend(flat.astype(np.float32).tolist())
        elif flat.dtype.kind in "iub":
            feature.int64_list.value.extend(flat.astype(np.int64).tolist())
        elif flat.dtype.kind in "OSU":
            feature.bytes_list.value.extend(as_bytes(value) for value in flat.tolist())
        else:
            raise InputError(f"feature {name!r}: tf.Example cannot hold values of dtype {flat.dtype}")
    serialized: bytes = example.SerializeToString()
    return serialized


def decode(serialized: Sequence[bytes], specs: Mapping[str, TensorSpec]) -> dict[str, NDArray[Any]]:
    """Serialized tf.Examples as one batch for each spec, whose first dimension is the batch.

    The same rules as ``tf.io.parse_example`` with a FixedLenFeature for each spec: extra features are
    ignored, missing ones, other kinds and other lengths are errors. Raises `InputError`.
    """
    rows: dict[str, list[NDArray[Any]]] = {name: [] for name in specs}
    for index, raw in enumerate(serialized):
        try:
            example = messages.Example.FromString(raw)
        except Exception as error:  # protobuf's DecodeError
            raise InputError(f"Could not parse example input, value: {raw[:64]!r}") from error
        for name, spec in specs.items():
            rows[name].append(_feature(example, index, spec))
    return {
        name: np.stack(values) if values else np.zeros((0, *_row_shape(specs[name])), BY_NAME[specs[name].dtype].numpy)
        for name, values in rows.items()
    }


def _row_shape(spec: TensorSpec) -> tuple[int, ...]:
    if spec.shape is None or None in spec.shape[1:]:
        raise InputError(f"input {spec.name!r} has no fixed shape to parse tf.Examples into")
    return tuple(size for size in spec.shape[1:] if size is not None)


def _feature(example: Any, index: int, spec: TensorSpec) -> NDArray[Any]:
    shape = _row_shape(spec)
    dtype = BY_NAME[spec.dtype]
    kind = {"f": "float_list", "i": "int64_list", "u": "int64_list", "b": "int64_list", "O": "bytes_list"}[
        dtype.numpy.kind
    ]
    features = example.features.feature
    found = features[spec.name].WhichOneof("kind") if spec.name in features else None
    if found is None:
        raise InputError(
            f"Name: <unknown>, Feature: {spec.name} (data type: {dtype.wire_name}) is required but could not be found."
        )
    if found != kind:
        raise InputError(
            f"Name: <unknown>, Key: {spec.name}, Index: {index}.  Data types don't match. "
            f"Expected type: {dtype.wire_name}, given: {found}"
        )
    values = getattr(features[spec.name], kind).value
    if len(values) != int(np.prod(shape)):
        raise InputError(
            f"Name: <unknown>, Key: {spec.name}, Index: {index}.  Number of {dtype.wire_name} values != expected.  "
            f"values size: {len(values)} but output shape: [{','.join(map(str, shape))}]"
        )
    if kind == "bytes_list":
        array = np.empty(len(values), dtype=object)
        array[:] = list(values)
        return array.reshape(shape)
    return np.fromiter(values, dtype.numpy, len(values)).reshape(shape)
