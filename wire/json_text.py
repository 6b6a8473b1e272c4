"""JSON text as TensorFlow Serving reads it, and as its error texts show it.

The original parses with RapidJSON. orjson reads what both understand in the same way, `json_reader` the
rest; `json_numeric` is a shorter way for requests that are nothing but numbers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import orjson

from ..errors import InvalidArgumentError
from .json_numbers import number_text, unsubnormal
from .json_reader import HUGE_DIGITS, HUGE_EXPONENTS, members, read

_DEBUG_LIMIT = 256
_KEY = re.compile(rb'"[ \t\r\n]*:')
_ESCAPED = re.compile(r'["\\\x00-\x1f]')
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def parse(body: bytes) -> Any:
    """The first JSON value of ``body``; what follows it is ignored, as the original does.

    Objects are dicts; one in which a key occurs twice is a `Repeated`, and a lookup finds the first.
    Raises `InvalidArgumentError` with the original's text for what is no JSON.
    """
    return parse_plain(body)[0]


def parse_plain(body: bytes) -> tuple[Any, bool]:
    """The same as `parse`, and whether it is certain that all values are numbers.

    A ``signature_name`` and null are not looked at.
    """
    if not body:
        raise InvalidArgumentError("JSON Parse error: The document is empty")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return read(body), False  # NaN, Infinity, bytes after the value, or really wrong: the exact reader tells
    keys = len(_KEY.findall(body))
    if has_huge_numbers(body) or not _has_all_keys(value, keys, body.count(b"{")):
        return read(body), False
    has_signature = isinstance(value, dict) and isinstance(value.get("signature_name"), str)
    has_texts = body.count(b'"') != 2 * (keys + has_signature)
    return value, not has_texts and b"true" not in body and b"false" not in body


def has_huge_numbers(text: bytes) -> bool:
    """Whether there may be numbers for which it matters how RapidJSON calculates."""
    return any(huge.search(text) for huge in HUGE_EXPONENTS) or HUGE_DIGITS in text


def _has_all_keys(value: Any, keys: int, objects: int) -> bool:
    """Whether these are the numbers of keys and objects in a value.

    They are counted in the text, as quotes before a colon and as braces: if they are all there, orjson
    has dropped no repeated key. One of them inside a string causes a false alarm.
    """
    containers = [value]
    while containers and objects:
        container = containers.pop()
        if isinstance(container, dict):
            keys -= len(container)
            objects -= 1
            containers.extend(item for item in container.values() if isinstance(item, dict | list))
        elif isinstance(container, list):
            containers.extend(item for item in container if isinstance(item, dict | list))
    return keys == 0 and objects == 0


def debug(value: Any) -> str:
    """A JSON value as error texts show it: indented objects, arrays on one line.

    It ends after the token with which it exceeds 256 bytes, and before a number that is not finite.
    """
    shown = bytearray()
    for token in _tokens(value, "", 1):
        if token is None:
            break
        shown += token.encode("utf-8", "surrogateescape")
        if len(shown) > _DEBUG_LIMIT:
            break
    return shown.decode("utf-8", "surrogateescape")


def _tokens(value: Any, before: str, depth: int) -> Iterator[str | None]:
    """What RapidJSON's PrettyWriter writes at each step, and None where it gives up.

    ``before`` is what separates the value from the one before it.
    """
    if isinstance(value, dict):
        yield before + "{"
        separator = "\n"
        for key, item in members(value):
            yield f"{separator}{'    ' * depth}{_string(key)}"
            yield from _tokens(item, ": ", depth + 1)
            separator = ",\n"
        yield f"\n{'    ' * (depth - 1)}}}" if value else "}"
    elif isinstance(value, list):
        yield before + "["
        separator = ""
        for item in value:
            yield from _tokens(item, separator, depth + 1)
            separator = ", "
        yield "]"
    elif isinstance(value, float):
        if math.isfinite(value):
            yield before + number_text(unsubnormal(value))
        else:
            yield before
            yield None
    else:
        yield before + (_string(value) if isinstance(value, str) else json.dumps(value))


def _string(text: str) -> str:
    return f'"{_ESCAPED.sub(_escape, text)}"'


def _escape(found: re.Match[str]) -> str:
    return _ESCAPES.get(found[0]) or f"\\u{ord(found[0]):04X}"


def format_error(message: str) -> bytes:
    """The body of an error response; bytes that are not UTF-8 pass through."""
    return f'{{\n    "error": {_string(message)}\n}}'.encode("utf-8", "surrogateescape")
