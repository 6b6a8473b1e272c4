"""TensorProto ⇄ ndarray for every dtype of the serving interface.

Strings are ``object`` arrays of bytes; quantized types are arrays of their storage integer;
``bfloat16`` is ml_dtypes' type. The rules for short, long and missing ``*_val`` fields are
TensorFlow's (``tensorflow/core/framework/tensor.cc``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import messages

# One protobuf message cannot hold more; a shape that asks for more is an attack or a mistake.
MAX_TENSOR_BYTES = 2**31
# How much of a tensor may be left to the rule that the last value repeats: a message of sixty bytes
# could else ask for two gigabytes, and a model for many times as much.
MAX_FILL_BYTES = 2**26
MAX_RANK = 32

_ML_DTYPES = {
    *("bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e4m3b11fnuz", "float8_e5m2fnuz"),
    *("int4", "uint4", "int2", "uint2", "float4_e2m1fn"),
}


@dataclass(frozen=True)
class DType:
    """One row of the dtype table.

    ``name`` is what `TensorSpec.dtype` says, ``wire_name`` what TensorFlow's messages say, ``number``
    the enum value, ``numpy_name`` the storage type and ``field`` the TensorProto field of the values.
    """

    name: str
    wire_name: str
    number: int
    numpy_name: str
    field: str

    @cached_property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype that holds the elements; NumPy's own, or ml_dtypes' of that name."""
        if self.numpy_name in _ML_DTYPES:
            import ml_dtypes

            dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, self.numpy_name))
            return dtype
        return np.dtype(self.numpy_name)


_TABLE = (
    DType("float32", "float", 1, "float32", "float_val"),
    DType("float64", "double", 2, "float64", "double_val"),
    DType("int32", "int32", 3, "int32", "int_val"),
    DType("uint8", "uint8", 4, "uint8", "int_val"),
    DType("int16", "int16", 5, "int16", "int_val"),
    DType("int8", "int8", 6, "int8", "int_val"),
    DType("string", "string", 7, "object", "string_val"),
    DType("complex64", "complex64", 8, "complex64", "scomplex_val"),
    DType("int64", "int64", 9, "int64", "int64_val"),
    DType("bool", "bool", 10, "bool", "bool_val"),
    DType("qint8", "qint8", 11, "int8", "int_val"),
    DType("quint8", "quint8", 12, "uint8", "int_val"),
    DType("qint32", "qint32", 13, "int32", "int_val"),
    DType("bfloat16", "bfloat16", 14, "bfloat16", "half_val"),
    DType("qint16", "qint16", 15, "int16", "int_val"),
    DType("quint16", "quint16", 16, "uint16", "int_val"),
    DType("uint16", "uint16", 17, "uint16", "int_val"),
    DType("complex128", "complex128", 18, "complex128", "dcomplex_val"),
    DType("float16", "half", 19, "float16", "half_val"),
    DType("uint32", "uint32", 22, "uint32", "uint32_val"),
    DType("uint64", "uint64", 23, "uint64", "uint64_val"),
    DType("float8_e5m2", "float8_e5m2", 24, "float8_e5m2", "float8_val"),
    DType("float8_e4m3fn", "float8_e4m3fn", 25, "float8_e4m3fn", "float8_val"),
    DType("float8_e4m3fnuz", "float8_e4m3fnuz", 26, "float8_e4m3fnuz", "float8_val"),
    DType("float8_e4m3b11fnuz", "float8_e4m3b11fnuz", 27, "float8_e4m3b11fnuz", "float8_val"),
    DType("float8_e5m2fnuz", "float8_e5m2fnuz", 28, "float8_e5m2fnuz", "float8_val"),
    DType("int4", "int4", 29, "int4", "int_val"),
    DType("uint4", "uint4", 30, "uint4", "int_val"),
    DType("int2", "int2", 31, "int2", "int_val"),
    DType("uint2", "uint2", 32, "uint2", "int_val"),
    DType("float4_e2m1fn", "float4_e2m1fn", 33, "float4_e2m1fn", "tensor_content"),
)

BY_NAME = {row.name: row for row in _TABLE}
BY_NUMBER = {row.number: row for row in _TABLE}

# Fields whose packed encoding is the array's own little-endian bytes: field name → tag byte.
RAW_FIELDS = {"float_val": 0x2A, "double_val": 0x32, "bool_val": 0x5A, "scomplex_val": 0x4A, "dcomplex_val": 0x62}


def dtype_of(array: NDArray[Any]) -> DType:
    """The row of an array's own dtype; text and bytes arrays are ``string``.

    Raises `InputError` for a dtype that the interface cannot carry.
    """
    return _row_of(array.dtype)


@cache
def _row_of(dtype: np.dtype[Any]) -> DType:
    name = "string" if dtype.kind in "OSU" else dtype.name
    if name not in BY_NAME:
        raise InputError(f"arrays of dtype {dtype} cannot be sent; known: {', '.join(BY_NAME)}")
    return BY_NAME[name]


def decode(proto: Any) -> NDArray[Any]:
    """A TensorProto as an ndarray; a view of the message's bytes where ``tensor_content`` is set.

    A missing shape means a scalar; too few values repeat the last one, none at all give zeros,
    surplus ones are ignored; integers out of range wrap. Raises `InputError` for an unknown dtype, a
    negative dimension, content of the wrong length, a shape above ``MAX_TENSOR_BYTES``, or values that
    would have to be repeated for more than ``MAX_FILL_BYTES``.
    """
    row = BY_NUMBER.get(proto.dtype)
    if row is None:
        raise InputError(f"tensor dtype {proto.dtype} is not supported")
    tensor_shape = proto.tensor_shape
    shape = tuple([dim.size for dim in tensor_shape.dim])
    if tensor_shape.unknown_rank or min(shape, default=0) < 0:
        raise InputError(f"tensor shape {list(shape)} is not fully defined")
    count = math.prod(shape)
    itemsize = row.numpy.itemsize
    # NumPy holds no more dimensions than these, and multiplies the sizes beside an empty one too.
    widest = count or math.prod([size or 1 for size in shape])
    if len(shape) > MAX_RANK or widest * itemsize > MAX_TENSOR_BYTES:
        raise InputError(f"a tensor of shape {list(shape)} does not fit into a message")
    if row.name == "string":
        return _decode_strings(proto, shape, count)
    content = proto.tensor_content
    if content:
        if len(content) != count * itemsize:
            raise InputError(
                f"tensor_content holds {len(content)} bytes, shape {list(shape)} of {row.name} needs {count * itemsize}"
            )
        return np.frombuffer(content, row.numpy).reshape(shape)
    return _fill(_values(proto, row), count, row.numpy).reshape(shape)


def _values(proto: Any, row: DType) -> NDArray[Any]:
    values = getattr(proto, row.field)
    if row.field in ("scomplex_val", "dcomplex_val"):
        part = np.float32 if row.field == "scomplex_val" else np.float64
        parts = np.fromiter(values, part, len(values))
        return parts[: len(parts) // 2 * 2].view(row.numpy)
    if row.field == "half_val":
        return np.fromiter(values, np.int32, len(values)).astype(np.uint16).view(row.numpy)
    if row.field == "int_val":
        return np.fromiter(values, np.int32, len(values)).astype(row.numpy)
    if row.field in ("float8_val", "tensor_content"):  # the elements' own bytes
        return np.frombuffer(values, row.numpy)
    return np.fromiter(values, row.numpy, len(values))


def _fill(values: NDArray[Any], count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    if len(values) >= count:
        return values[:count]
    _check_fill((count - len(values)) * dtype.itemsize)
    filled = np.zeros(count, dtype)
    filled[: len(values)] = values
    if len(values):
        filled[len(values) :] = values[-1]
    return filled


def _check_fill(size: int) -> None:
    if size > MAX_FILL_BYTES:
        raise InputError(f"the shape asks for {size} bytes more than there are values; at most {MAX_FILL_BYTES} may be")


def _decode_strings(proto: Any, shape: tuple[int, ...], count: int) -> NDArray[Any]:
    if proto.tensor_content:
        values = _split_string_content(proto.tensor_content, count)
    else:
        values = list(proto.string_val)[:count]
        last = values[-1] if values else b""
        _check_fill((count - len(values)) * (np.dtype(object).itemsize + len(last)))
        values += [last] * (count - len(values))
    array = np.empty(count, dtype=object)
    array[:] = values
    return array.reshape(shape)


def _split_string_content(content: bytes, count: int) -> list[bytes]:
    """Strings in ``tensor_content``: all lengths as varints, then all bytes."""
    lengths, at = [], 0
    for _ in range(count):
        length = shift = 0
        while True:
            if at >= len(content) or shift > 63:
                raise InputError("tensor_content of a string tensor is truncated")
            byte = content[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        lengths.append(length)
    if at + sum(lengths) != len(content):
        raise InputError("tensor_content of a string tensor has the wrong length")
    values = []
    for length in lengths:
        values.append(content[at : at + length])
        at += length
    return values


def encode(array: NDArray[Any], dtype: str | None = None, *, content: bool = False) -> Any:
    """An ndarray as a TensorProto; see `encode_into`."""
    proto = messages.TensorProto()
    encode_into(proto, array, dtype, content=content)
    return proto


def encode_into(proto: Any, array: NDArray[Any], dtype: str | None = None, *, content: bool = False) -> None:
    """Write an ndarray into an empty TensorProto, in typed ``*_val`` fields or as ``tensor_content``.

    ``dtype`` names the wire type where the array's own does not tell it (quantized types); the array
    must be of its storage type. Raises `InputError` for a dtype that the interface cannot carry, or
    for an array of another one than ``dtype`` says.
    """
    row = BY_NAME.get(dtype) if dtype else dtype_of(array)
    if row is None or dtype_of(array).numpy != row.numpy:
        raise InputError(f"an array of dtype {array.dtype} cannot be sent as {dtype}")
    proto.dtype = row.number
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if not array.shape:
        proto.tensor_shape.SetInParent()
    if row.name == "string":
        values = [as_bytes(value) for value in array.ravel().tolist()]
        if content:
            proto.tensor_content = b"".join(varint(len(value)) for value in values) + b"".join(values)
        else:
            proto.string_val.extend(values)
        return
    array = np.ascontiguousarray(array, row.numpy)
    if content or row.field == "tensor_content":
        proto.tensor_content = array.tobytes()
    elif row.field == "float8_val":
        proto.float8_val = array.tobytes()
    elif row.field in RAW_FIELDS:
        raw = array.tobytes()
        proto.MergeFromString(bytes([RAW_FIELDS[row.field]]) + varint(len(raw)) + raw)
    elif row.field == "half_val":
        proto.half_val.extend(array.view(np.uint16).ravel().tolist())
    else:
        getattr(proto, row.field).extend(map(int, array.ravel().tolist()))


def as_bytes(value: Any) -> bytes:
    """One element of a string tensor: bytes as they are, text as UTF-8; else `InputError`."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{value!r} cannot be sent as text: {error.reason}") from None
    raise InputError(f"a string tensor holds bytes or text, got {type(value).__name__}")


def varint(value: int) -> bytes:
    """A non-negative integer as protobuf writes it: seven bits a byte, the lowest first."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
