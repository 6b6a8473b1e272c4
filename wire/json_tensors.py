"""JSON values → arrays: shapes from the nesting, elements checked against the input's dtype.

Message texts are TensorFlow Serving's (``util/json_tensor.cc``).
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidArgumentError, UnimplementedError
from ..signature import TensorSpec
from .json_text import debug
from .tensors import BY_NAME, MAX_RANK

_FLOATS = {"float32", "float64"}
_INT_RANGE = {
    "int8": (-(2**31), 2**31 - 1),
    "int16": (-(2**31), 2**31 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "uint8": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}
_TYPES = {type(None): "Null", dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"}


def is_b64(value: Any) -> bool:
    """Whether a value is ``{"b64": "..."}`` and nothing else."""
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def to_array(value: Any, spec: TensorSpec, plain: bool) -> NDArray[Any]:
    """One tensor from one JSON value; ``plain`` says that the document holds no true or false.

    Raises `InvalidArgumentError` for what does not fit and `UnimplementedError` for a dtype that JSON
    cannot carry.
    """
    fast = fast_array(value, spec, plain)
    return exact_array(value, spec) if fast is None else fast


def fast_array(value: Any, spec: TensorSpec, plain: bool) -> NDArray[Any] | None:
    """The whole nested list by NumPy at once, or None where a closer look is needed."""
    if not plain or not isinstance(value, list):
        return None
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        return None
    kinds = "iuf" if spec.dtype in _FLOATS else "iu" if spec.dtype in _INT_RANGE else ""
    if array.dtype.kind not in kinds or not array.size:
        return None
    if spec.dtype in _INT_RANGE:
        low, high = _INT_RANGE[spec.dtype]
        if int(array.min()) < low or int(array.max()) > high:
            return None
    with np.errstate(over="ignore"):
        return array.astype(BY_NAME[spec.dtype].numpy)


def exact_array(value: Any, spec: TensorSpec) -> NDArray[Any]:
    """One tensor element by element, with the exact error for the first one that does not fit."""
    shape: list[int] = []
    probe = value
    while isinstance(probe, list):
        shape.append(len(probe))
        if not probe:
            break
        probe = probe[0]
    if len(shape) > MAX_RANK:
        raise InvalidArgumentError(f"a tensor of {len(shape)} dimensions is more than the {MAX_RANK} that can be held")
    flat: list[Any] = []
    _collect(value, spec, shape, 0, flat)
    row = BY_NAME.get(spec.dtype)
    if row is None or (flat and not carries(spec.dtype)):
        raise UnimplementedError(f"Conversion of JSON Value: {debug(value)} to type: {spec.dtype}")
    if spec.dtype in _INT_RANGE:
        wide = np.uint64 if spec.dtype == "uint64" else np.int64
        return np.array(flat, wide).astype(row.numpy).reshape(shape)
    array = np.empty(len(flat), row.numpy)
    with np.errstate(over="ignore"):
        array[:] = flat
    return array.reshape(shape)


def carries(dtype: str) -> bool:
    """Whether JSON can carry tensors of this dtype."""
    return dtype in _FLOATS or dtype in _INT_RANGE or dtype in ("bool", "string")


def _collect(value: Any, spec: TensorSpec, shape: list[int], level: int, flat: list[Any]) -> None:
    if isinstance(value, list):
        if level >= len(shape):
            raise InvalidArgumentError(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
        if len(value) != shape[level]:
            raise InvalidArgumentError(
                f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
            )
        for item in value:
            _collect(item, spec, shape, level + 1, flat)
        return
    if level != len(shape):
        raise InvalidArgumentError(
            f"JSON Value: {debug(value)} found at incorrect level: {level + 1} in the JSON DOM. "
            f"Expected at level: {len(shape)}"
        )
    flat.append(_element(value, spec))


def _element(value: Any, spec: TensorSpec) -> Any:
    dtype = spec.dtype
    if dtype == "string":
        if isinstance(value, str):
            return value.encode("utf-8", "surrogateescape")
        if is_b64(value):
            return _unbase64(value["b64"])
        if isinstance(value, dict):
            raise InvalidArgumentError(f"JSON Value: {debug(value)} not formatted correctly for base64 data")
    elif dtype == "bool":
        if isinstance(value, bool):
            return value
    elif dtype in _FLOATS:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return _as_float(value)
    elif dtype in _INT_RANGE:
        low, high = _INT_RANGE[dtype]
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
    elif not isinstance(value, dict):
        raise UnimplementedError(f"Conversion of JSON Value: {debug(value)} to type: {_wire_name(dtype)}")
    kind = str(value) if isinstance(value, bool) else _TYPES[type(value)]
    raise InvalidArgumentError(f"JSON Value: {debug(value)} Type: {kind} is not of expected type: {_wire_name(dtype)}")


def _as_float(value: float) -> float:
    """A JSON number as a double; integers beyond its range become infinite, as in the original."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _wire_name(dtype: str) -> str:
    return BY_NAME[dtype].wire_name if dtype in BY_NAME else dtype


def _unbase64(text: str) -> bytes:
    compact = "".join(text.split())
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgumentError("Unable to base64 decode") from None
