"""JSON text as TensorFlow Serving reads it, and as its error texts show it.

The original parses with RapidJSON: it stops after the first value, accepts NaN, Inf and Infinity, and
of duplicate keys takes the first. orjson reads what is plain JSON; Python's own parser the rest.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import orjson

from ..errors import InvalidArgumentError

_DEBUG_LIMIT = 256
# Digits; no dtype holds so many, and Python refuses to convert much longer ones.
_LONG_INTEGER = 400


def parse(body: bytes, *, first_wins: bool = False) -> Any:
    """The first JSON value of ``body``; what follows it is ignored, as the original does.

    Of duplicate keys the last one wins in plain JSON, and the first one with ``first_wins``, which is
    what the original does and slower.
    """
    if not body:
        raise InvalidArgumentError("JSON Parse error: The document is empty")
    if not first_wins:
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            pass  # NaN, Infinity, bytes after the value, or really wrong: the slower parser tells
    text = body.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    start = len(text) - len(text.lstrip(" \t\r\n"))
    if start == len(text):
        raise InvalidArgumentError("JSON Parse error: The document is empty. at offset: 0")
    lone = _LONE_SURROGATE.search(text)
    if lone:
        raise InvalidArgumentError(
            f"JSON Parse error: The surrogate pair in string is invalid. at offset: {lone.start() + 1}"
        )
    if "Inf" in text:
        text = _BARE_INF.sub(lambda found: found[1] or "Infinity", text)
    try:
        value, _ = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        at = error.pos
        if error.msg.startswith("Illegal trailing comma"):  # from Python 3.13 on, at the comma itself
            at = len(text) - len(text[at + 1 :].lstrip(" \t\r\n"))
        reason = _parse_error(error.msg, text[start:at])
        raise InvalidArgumentError(f"JSON Parse error: {reason} at offset: {at}") from None
    except OverflowError as error:
        raise InvalidArgumentError(
            f"JSON Parse error: Number too big to be stored in double. at offset: {text.find(str(error))}"
        ) from None
    except RecursionError:
        raise InvalidArgumentError("JSON Parse error: the document is nested too deeply") from None
    return value


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


# Half a surrogate pair, written as an escape: it stands for no character.
_HIGH, _LOW = r"\\u[dD][89abAB][0-9a-fA-F]{2}", r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE_SURROGATE = re.compile(rf"(?<!\\)(?:\\\\)*(?:{_HIGH}(?!{_LOW})|(?<!{_HIGH}){_LOW})")

# Inf outside strings, which the original takes for Infinity.
# (an unterminated one runs to the end: to look for its beginning again at every quote would take for ever)
_STRING = r'"(?:[^"\\]|\\.)*(?:"|\Z)'
_BARE_INF = re.compile(rf"({_STRING})|\bInf\b", re.DOTALL)


def _double(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise OverflowError(text)
    return value


def _integer(text: str) -> int | float:
    return int(text) if len(text) < _LONG_INTEGER else _double(text)


_DECODER = json.JSONDecoder(object_pairs_hook=_first_wins, parse_float=_double, parse_int=_integer)


def _in_array(text: str) -> bool:
    """Whether this beginning of a document ends inside an array (and not an object)."""
    opened: list[str] = []
    for bracket in re.sub(rf"{_STRING}|[^\[\]{{}}]", "", text, flags=re.DOTALL):
        if bracket in "[{":
            opened.append(bracket)
        else:
            opened.pop()
    return opened[-1:] == ["["]


def _parse_error(message: str, before: str) -> str:
    if message.startswith("Expecting ',' delimiter") and _in_array(before):
        return "Missing a comma or ']' after an array element."
    texts = {
        "Expecting property name": "Missing a name for object member.",
        "Expecting ':'": "Missing a colon after a name of object member.",
        "Invalid \\escape": "Invalid escape character in string.",
        "Invalid control character": "Invalid escape character in string.",
        "Unterminated string": "Missing a closing quotation mark in string.",
        "Illegal trailing comma before end of object": "Missing a name for object member.",
        "Expecting ',' delimiter": "Missing a comma or '}' after an object member.",
    }
    return next((text for start, text in texts.items() if message.startswith(start)), "Invalid value.")


def debug(value: Any) -> str:
    """A JSON value as error texts show it: indented objects, arrays on one line, cut at 256 bytes."""
    text = _pretty(value, 0)
    return text if len(text) <= _DEBUG_LIMIT else text[:_DEBUG_LIMIT]


def _pretty(value: Any, indent: int) -> str:
    if isinstance(value, dict):
        if not value or indent > _DEBUG_LIMIT:  # deeper than what is shown
            return "{}"
        pad = " " * (indent + 4)
        items = ",\n".join(
            f"{pad}{json.dumps(k, ensure_ascii=False)}: {_pretty(v, indent + 4)}" for k, v in value.items()
        )
        return f"{{\n{items}\n{' ' * indent}}}"
    if isinstance(value, list):
        if indent > 8 * _DEBUG_LIMIT:
            return "[]"
        parts, size = [], 0
        for item in value:
            parts.append(_pretty(item, indent + 8))
            size += len(parts[-1])
            if size > _DEBUG_LIMIT:
                break
        return f"[{', '.join(parts)}]"
    return json.dumps(value, ensure_ascii=False)


def format_error(message: str) -> bytes:
    """The body of an error response; bytes that are not UTF-8 pass through."""
    return f'{{\n    "error": {json.dumps(message, ensure_ascii=False)}\n}}'.encode("utf-8", "surrogateescape")
