"""The short way for requests that are nothing but numbers: simdjson, straight into an array.

It takes a body only where all of this is certain: there is one nested list of numbers and no other
value than a signature name, no key occurs twice, the list is regular, and RapidJSON would read the same
numbers. Whatever raises a doubt is left to the slower readers, which give the same arrays.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..signature import TensorSpec
from .json_text import has_huge_numbers
from .tensors import MAX_RANK


def _load() -> Any:
    try:
        return import_module("simdjson")
    except ImportError:  # the base install has no server, and its client reads answers only
        return None


simdjson = _load()

_NAME = rb'"([A-Za-z0-9_./-]*)"'
_HEAD = re.compile(
    rb'[ \t\r\n]*\{[ \t\r\n]*(?:"signature_name"[ \t\r\n]*:[ \t\r\n]*%b[ \t\r\n]*,[ \t\r\n]*)?'
    rb'"(instances|inputs)"[ \t\r\n]*:[ \t\r\n]*(?:(\[[ \t\r\n]*)?\{[ \t\r\n]*%b[ \t\r\n]*:[ \t\r\n]*)?(?=\[)'
    % (_NAME, _NAME)
)
_TAIL = re.compile(rb'[ \t\r\n}]*,[ \t\r\n]*"signature_name"[ \t\r\n]*:[ \t\r\n]*%b' % _NAME)
# Brackets and commas show the nesting, quotes that there is no other text.
_BUT_SKELETON = bytes(set(range(256)) - set(b'[],"'))
_DTYPES = {"d": np.float64, "i": np.int64, "u": np.uint64}
# A shorter text orjson has read before the checks here are done.
_WORTHWHILE_BYTES = 256
# At the edge of the doubles RapidJSON's way to calculate decides.
_EDGE = 1.79e308
# A parser keeps memory for the longest document that it has seen, many times its size.
_KEPT_PARSER_BYTES = 2**20
_CACHED_ELEMENTS = 2**16
_local = threading.local()


class Numbers(NamedTuple):
    """A request that is one regular list of numbers.

    ``key`` is ``instances`` or ``inputs``, ``name`` the input's name if the list stands in an object:
    the one under ``inputs``, or the only one of ``instances``. ``values`` is float64, or int64 or uint64
    if there is no other number among them.
    """

    signature_name: str
    key: str
    name: str | None
    values: NDArray[Any]

    def spec(self, specs: Mapping[str, TensorSpec]) -> TensorSpec | None:
        """The input that the numbers are for, if they are for the only one."""
        if len(specs) != 1:
            return None
        ((name, spec),) = specs.items()
        return spec if self.name is None or self.name == name else None


def read_numbers(body: bytes) -> Numbers | None:
    """The numbers of a Predict request, or None if it is anything else or simdjson is not installed."""
    if simdjson is None or len(body) < _WORTHWHILE_BYTES:
        return None
    head = _HEAD.match(body)
    if head is None:
        return None
    before, key, instance, name = head.groups()
    start, end = head.end(), body.rfind(b"]") + 1
    tail = _TAIL.match(body, end)
    if name is not None and (key == b"instances") != (instance is not None):
        return None
    # Behind the numbers, in the same object as these, the signature's name is none.
    if tail and (before is not None or (name is not None and instance is None and b"}" not in tail[0])):
        return None
    has_exponents = body.find(b"e", start, end) >= 0 or body.find(b"E", start, end) >= 0
    if has_exponents and has_huge_numbers(body[start:end]):
        return None
    path: list[str | int] = [key.decode()]
    if name is not None:
        path += [name.decode()] if instance is None else [0, name.decode()]
    values = _values(body, path, "d" if has_exponents or body.find(b".", start, end) >= 0 else "iud")
    if values is None:
        return None
    skeleton = _skeleton(values.shape)
    if name is not None:
        skeleton = b'""%b' % skeleton if instance is None else b'[""%b]' % skeleton
    expected = b'%b""%b%b' % (b"" if before is None else b'"""",', skeleton, b"" if tail is None else b',""""')
    if body.translate(None, _BUT_SKELETON) != expected:
        return None
    signature_name = before if before is not None else tail[1] if tail else b""
    return Numbers(
        signature_name.decode(),
        key.decode(),
        None if name is None else name.decode(),
        values if instance is None else values[np.newaxis],
    )


def _values(body: bytes, path: list[str | int], kinds: str) -> NDArray[Any] | None:
    """The numbers in the shape that the first ones have; whether the others have it too is not looked at."""
    try:
        value: Any = _parser(len(body)).parse(body)
        for key in path:
            value = value[key]
        shape = _shape(value)
        flat = _flat(value, kinds)
    except (LookupError, TypeError, ValueError, RuntimeError):
        return None
    if flat is None or not flat.size or flat.size != math.prod(shape):
        return None
    if flat.dtype.kind == "f" and np.abs(flat).max() >= _EDGE:
        return None
    return flat.reshape(shape)


def _flat(array: Any, kinds: str) -> NDArray[Any] | None:
    """All numbers of a list, as the first of the kinds that holds them."""
    for kind in kinds:
        # Integers that are no int64 may still be all of uint64.
        with suppress(ValueError):
            return np.frombuffer(array.as_buffer(of_type=kind), _DTYPES[kind])
    return None


def _parser(size: int) -> Any:
    if size > _KEPT_PARSER_BYTES:
        return simdjson.Parser()
    if not hasattr(_local, "parser"):
        _local.parser = simdjson.Parser()
    return _local.parser


def _shape(array: Any) -> tuple[int, ...]:
    """The lengths of the first list of each level; (0,) if there is nothing in one of them, or too many."""
    shape: list[int] = []
    while isinstance(array, simdjson.Array):
        shape.append(len(array))
        if not shape[-1] or len(shape) >= MAX_RANK:  # one more may come for the batch
            return (0,)
        array = array[0]
    return tuple(shape)


def _skeleton(shape: tuple[int, ...]) -> bytes:
    """The brackets and commas of a regular list of this shape."""
    return _cached_skeleton(shape) if math.prod(shape) <= _CACHED_ELEMENTS else _build_skeleton(shape)


def _build_skeleton(shape: tuple[int, ...]) -> bytes:
    text = b""
    for size in reversed(shape):
        text = b"[%b]" % b",".join([text] * size)
    return text


_cached_skeleton = lru_cache(maxsize=64)(_build_skeleton)
