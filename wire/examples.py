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

# The list that holds values of a NumPy kind, and what TensorFlow calls its element type.
_KINDS = {"f": "float_list", "i": "int64_list", "u": "int64_list", "b": "int64_list", "O": "bytes_list"}
_KIND_NAMES = {"float_list": "float", "int64_list": "int64", "bytes_list": "string"}


def encode(features: Mapping[str, NDArray[Any]]) -> bytes:
    """One serialized tf.Example; each feature is a flat list of floats, integers or strings.

    Raises `InputError` for what tf.Example cannot hold, such as complex numbers.
    """
    example = messages.Example()
    for name, array in features.items():
        feature = example.features.feature[name]
        flat = np.ravel(array)
        if flat.dtype.kind == "f":
            feature.float_list.value.extend(flat.astype(np.float32).tolist())
        elif flat.dtype.kind in "iub":
            if flat.size and flat.max() > np.iinfo(np.int64).max:
                raise InputError(f"feature {name!r}: tf.Example cannot hold {flat.max()}, which is more than int64")
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
    kind = _KINDS.get(dtype.numpy.kind)
    if kind is None:
        raise InputError(f"input {spec.name!r}: tf.Example cannot hold values of dtype {spec.dtype}")
    features = example.features.feature
    found = features[spec.name].WhichOneof("kind") if spec.name in features else None
    if found is None:
        raise InputError(
            f"Name: <unknown>, Feature: {spec.name} (data type: {dtype.wire_name}) is required but could not be found."
        )
    if found != kind:
        raise InputError(
            f"Name: <unknown>, Key: {spec.name}, Index: {index}.  Data types don't match. "
            f"Data type: {_KIND_NAMES[found]} but expected type: {dtype.wire_name}"
        )
    values = getattr(features[spec.name], kind).value
    if len(values) != int(np.prod(shape)):
        raise InputError(
            f"Name: <unknown>, Key: {spec.name}, Index: {index}.  Number of {dtype.wire_name} values != expected.  "
            f"Values size: {len(values)} but output shape: [{','.join(map(str, shape))}]"
        )
    if kind == "bytes_list":
        array = np.empty(len(values), dtype=object)
        array[:] = list(values)
        return array.reshape(shape)
    try:
        return np.fromiter(values, dtype.numpy, len(values)).reshape(shape)
    except OverflowError as error:
        raise InputError(f"input {spec.name!r}: {error}") from error
