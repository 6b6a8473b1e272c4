"""JSON values → arrays: shapes from the nesting, elements checked against the input's dtype.

Message texts are TensorFlow Serving's.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ..errors import InvalidArgumentError, UnimplementedError
from ..signature import TensorSpec
from .json_reader import Repeated
from .json_text import debug
from .tensors import BY_NAME, MAX_RANK

_FLOATS = {"float32", "float64"}
# The smallest normal numbers by their size in bytes: what is smaller, the original's CPU flushes to zero.
_SMALLEST = {4: 2.0**-126, 8: 2.0**-1022}
_INT_RANGE = {
    "int8": (-(2**31), 2**31 - 1),
    "int16": (-(2**31), 2**31 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "uint8": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_OF_NUMBERS = b"[],-+.0123456789eE"
_WHITESPACE = b" \t\n\v\f\r"


def carries(dtype: str) -> bool:
    """Whether JSON can carry tensors of this dtype."""
    return dtype in _FLOATS or dtype in _INT_RANGE or dtype in ("bool", "string")


def is_b64(value: Any) -> bool:
    """Whether a value is ``{"b64": "..."}`` and nothing else."""
    return (
        isinstance(value, dict)
        and len(value) == 1
        and isinstance(value.get("b64"), str)
        and not isinstance(value, Repeated)
    )


def type_name(value: Any) -> str:
    """What error texts call the type of a JSON value."""
    if isinstance(value, bool) or value is None:
        return {True: "True", False: "False", None: "Null"}[value]
    return {dict: "Object", Repeated: "Object", list: "Array", str: "String", int: "Number", float: "Number"}[
        type(value)
    ]


def to_array(value: Any, spec: TensorSpec, plain: bool) -> NDArray[Any]:
    """One tensor from one JSON value; ``plain`` says that it is certain to hold nothing but numbers.

    Raises `InvalidArgumentError` for what does not fit and `UnimplementedError` for a dtype that JSON
    cannot carry.
    """
    fast = fast_array(value, spec, plain)
    if fast is not None:
        return fast
    shape, flat = elements(value, spec)
    return build(flat, shape, spec)


def fast_array(value: Any, spec: TensorSpec, plain: bool) -> NDArray[Any] | None:
    """The whole nested list by NumPy at once, or None where a closer look is needed."""
    if not isinstance(value, list) or not (spec.dtype in _FLOATS or spec.dtype in _INT_RANGE):
        return None
    # NumPy would take true for 1, and one long string for a reason to make all elements as long.
    if not plain and not _only_numbers(value):
        return None
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        return None
    return from_numbers(array, spec)


def _only_numbers(value: list[Any]) -> bool:
    try:
        return not orjson.dumps(value).translate(None, _OF_NUMBERS)
    except orjson.JSONEncodeError:  # nested too deeply, or text that is no UTF-8
        return False


def from_numbers(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any] | None:
    """An array of the numbers of a JSON text in the dtype of an input, or None where they do not fit."""
    if not array.size or array.ndim > MAX_RANK:
        return None
    if spec.dtype in _FLOATS and array.dtype.kind in "iuf":
        return _floats(array, spec)
    if spec.dtype in _INT_RANGE and array.dtype.kind in "iu":
        low, high = _INT_RANGE[spec.dtype]
        if low <= int(array.min()) and int(array.max()) <= high:
            return array.astype(BY_NAME[spec.dtype].numpy)
    return None


def _floats(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        # Integers too become doubles first, and only then floats.
        return array.astype(np.float64, copy=False).astype(BY_NAME[spec.dtype].numpy, copy=False)


def flush(array: NDArray[Any]) -> NDArray[Any]:
    """The array with its subnormal numbers set to zero, in place; the sign stays."""
    if array.dtype.kind == "f" and array.itemsize in _SMALLEST:
        tiny = np.abs(array) < _SMALLEST[array.itemsize]
        if np.count_nonzero(tiny):
            np.multiply(array, 0.0, out=array, where=tiny)
    return array


def elements(value: Any, spec: TensorSpec) -> tuple[tuple[int, ...], list[Any]]:
    """The shape that the first elements have, and all elements, each checked.

    Raises the error for the first element, in the order of the text, that does not fit.
    """
    shape = _shape(value)
    flat: list[Any] = []
    # The lists that are open, from the outside in; the value itself is the only item of none.
    opened = [iter([value])]
    while opened:
        level = len(opened) - 1
        for item in opened[-1]:
            if isinstance(item, list):
                _check_list(item, level, shape)
                opened.append(iter(item))
                break
            if level != len(shape):
                raise InvalidArgumentError(
                    f"JSON Value: {debug(item)} found at incorrect level: {level + 1} in the JSON DOM. "
                    f"Expected at level: {len(shape)}"
                )
            flat.append(_element(item, spec.dtype))
        else:
            opened.pop()
    return shape, flat


def _shape(value: Any) -> tuple[int, ...]:
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _check_list(value: list[Any], level: int, shape: tuple[int, ...]) -> None:
    if level >= len(shape):
        raise InvalidArgumentError(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise InvalidArgumentError(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )


def build(flat: Iterable[Any], shape: tuple[int, ...], spec: TensorSpec) -> NDArray[Any]:
    """An array of an input's dtype from checked elements; raises `InvalidArgumentError` for too high a rank."""
    row = BY_NAME.get(spec.dtype)
    if row is None:
        raise UnimplementedError(f"tensors of {spec.dtype} are not supported")
    if len(shape) > MAX_RANK:
        raise InvalidArgumentError(f"a tensor of {len(shape)} dimensions is more than the {MAX_RANK} that can be held")
    values = list(flat)[: math.prod(shape)]
    if spec.dtype in _FLOATS:
        return _floats(np.array(values, np.float64), spec).reshape(shape)
    if spec.dtype in _INT_RANGE:
        wide = np.uint64 if spec.dtype == "uint64" else np.int64
        return np.array(values, wide).astype(row.numpy).reshape(shape)
    array = np.empty(len(values), row.numpy)
    array[:] = values
    return array.reshape(shape)


def _element(value: Any, dtype: str) -> Any:
    if dtype == "string":
        if isinstance(value, str):
            return value.encode("utf-8", "surrogateescape")
        if is_b64(value):
            return unbase64(value["b64"])
        if isinstance(value, dict):
            raise InvalidArgumentError(f"JSON Value: {debug(value)} not formatted correctly for base64 data")
    elif dtype == "bool":
        if isinstance(value, bool):
            return value
    elif dtype in _FLOATS:
        if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool)):
            return value
    elif dtype in _INT_RANGE:
        low, high = _INT_RANGE[dtype]
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
    elif not isinstance(value, dict):
        raise UnimplementedError(f"Conversion of JSON Value: {debug(value)} to type: {_wire_name(dtype)}")
    raise InvalidArgumentError(
        f"JSON Value: {debug(value)} Type: {type_name(value)} is not of expected type: {_wire_name(dtype)}"
    )


def _wire_name(dtype: str) -> str:
    return BY_NAME[dtype].wire_name if dtype in BY_NAME else dtype


def unbase64(text: str) -> bytes:
    """The bytes of base64 text, with or without padding, whitespace anywhere.

    Raises `InvalidArgumentError`. Like the original it takes full stops for padding, and does not mind
    bits that are left over.
    """
    compact = text.encode("utf-8", "surrogateescape").translate(None, _WHITESPACE)
    digits = compact.rstrip(b"=.")
    padding = -len(digits) % 4
    if padding == 3 or len(compact) - len(digits) not in (0, padding) or digits.translate(None, _BASE64):
        raise InvalidArgumentError("Unable to base64 decode")
    return binascii.a2b_base64(digits + b"=" * padding)
