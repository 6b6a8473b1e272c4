"""Arrays → JSON text: Predict responses, and the client's Predict requests.

Numbers have the fewest digits that stand for them. Not-a-number and the infinities are bare words and
text is not checked to be UTF-8, as in the original.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ..errors import InvalidArgumentError
from .json_layout import as_original
from .json_tensors import carries
from .tensors import as_bytes, dtype_of


def format_predict(outputs: Mapping[str, NDArray[Any]], *, row: bool) -> bytes:
    """The body of a Predict response; a single output is written bare, without its name.

    Raises `InvalidArgumentError` for dtypes that JSON cannot carry and, in row format, for outputs
    without a common batch dimension.
    """
    if not outputs:
        raise InvalidArgumentError("Cannot convert empty tensor map to JSON")
    for array in outputs.values():
        if array.size and not carries(dtype_of(array).name):
            raise InvalidArgumentError(f"Failed to write JSON value for tensor type: {dtype_of(array).wire_name}")
    if row:
        _check_batch(outputs)
    body = b'{"predictions":%b}' % _row(outputs) if row else b'{"outputs":%b}' % _columns(outputs)
    if all(array.dtype.kind not in "OSU" for array in outputs.values()):
        return body
    return as_original(body, single_line=row and len(outputs) == 1)


def _row(outputs: Mapping[str, NDArray[Any]]) -> bytes:
    if len(outputs) == 1:
        ((name, array),) = outputs.items()
        return _text(array, as_b64=name.endswith("_bytes"))
    columns = [_rows(array, as_b64=name.endswith("_bytes")) for name, array in outputs.items()]
    keys = _keys(outputs)
    rows = [_object(keys, texts) for texts in zip(*columns, strict=True)]
    return b"[%b]" % b",".join(rows)


def _columns(outputs: Mapping[str, NDArray[Any]]) -> bytes:
    texts = [_text(array, as_b64=name.endswith("_bytes")) for name, array in outputs.items()]
    return texts[0] if len(texts) == 1 else _object(_keys(outputs), texts)


def _check_batch(outputs: Mapping[str, NDArray[Any]]) -> None:
    expected: int | None = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise InvalidArgumentError(f"Tensor name: {name} has no shape information ")
        expected = len(array) if expected is None else expected
        if len(array) != expected:
            raise InvalidArgumentError(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {expected}"
            )


def format_predict_request(inputs: Mapping[str, NDArray[Any]], signature_name: str = "") -> bytes:
    """The body of a Predict request in columnar format; strings travel as ``{"b64": ...}``.

    float16 and bfloat16 arrays are refused with `InvalidArgumentError`: the REST API cannot carry them.
    """
    for name, array in inputs.items():
        if not carries(dtype_of(array).name):
            raise InvalidArgumentError(
                f"input {name!r}: the REST API cannot carry {dtype_of(array).name}; use gRPC for this model"
            )
    columns = _object(_keys(inputs), [_text(array, as_b64=True) for array in inputs.values()])
    head = b'"signature_name":%b,' % string_text(_bytes(signature_name)) if signature_name else b""
    return b'{%b"inputs":%b}' % (head, columns)


def _keys(names: Iterable[str]) -> list[bytes]:
    return [string_text(_bytes(name)) + b":" for name in names]


def _object(keys: list[bytes], texts: Iterable[bytes]) -> bytes:
    return b"{%b}" % b",".join([key + text for key, text in zip(keys, texts, strict=True)])


def _text(array: NDArray[Any], *, as_b64: bool) -> bytes:
    """One tensor, nested as its shape says; ``as_b64`` counts for strings only."""
    if array.dtype.kind in "OSU":
        return _nested(_string_texts(array, as_b64=as_b64), array.shape)
    if not array.size:
        return _nested([], array.shape)
    return number_text(array) if array.ndim else number_text(array.reshape(1))[1:-1]


def _rows(array: NDArray[Any], *, as_b64: bool) -> list[bytes]:
    """One tensor, a text for each step along its first dimension."""
    if array.dtype.kind in "OSU" or not array.size:
        texts = _string_texts(array, as_b64=as_b64)
        size = math.prod(array.shape[1:])
        return [_nested(texts[i * size : (i + 1) * size], array.shape[1:]) for i in range(len(array))]
    inner = number_text(array)[1:-1]
    depth = array.ndim - 1
    if not depth:
        return inner.split(b",")
    # So many brackets in a row are only found between the rows.
    before, after = b"[" * depth, b"]" * depth
    return [before + row + after for row in inner[depth:-depth].split(after + b"," + before)]


def number_text(array: NDArray[Any]) -> bytes:
    """A numeric array of at least one dimension and element, as nested lists."""
    text = orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY)
    if array.dtype.kind != "f" or b"null" not in text:
        return text
    # What is not finite orjson writes as null; put the words in, in order.
    words = [_word(value) for value in array[~np.isfinite(array)].tolist()]
    parts = text.split(b"null")
    return b"".join(part for pair in zip(parts, [*words, b""], strict=True) for part in pair)


def _word(value: float) -> bytes:
    return b"NaN" if math.isnan(value) else b"Infinity" if value > 0 else b"-Infinity"


def _nested(texts: list[bytes], shape: tuple[int, ...]) -> bytes:
    for axis in reversed(range(len(shape))):
        size, count = shape[axis], math.prod(shape[:axis])
        texts = [b"[%b]" % b",".join(texts[i * size : (i + 1) * size]) for i in range(count)]
    return texts[0]


def _string_texts(array: NDArray[Any], *, as_b64: bool) -> list[bytes]:
    values = [as_bytes(value) for value in array.ravel().tolist()]
    if as_b64:
        return [b'{"b64":"%b"}' % base64.b64encode(value) for value in values]
    return [string_text(value) for value in values]


def string_text(value: bytes) -> bytes:
    """A JSON string; bytes that are no UTF-8 pass through."""
    try:
        return orjson.dumps(value.decode())
    except UnicodeDecodeError:
        text = json.dumps(value.decode("utf-8", "surrogateescape"), ensure_ascii=False)
        return text.encode("utf-8", "surrogateescape")


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
