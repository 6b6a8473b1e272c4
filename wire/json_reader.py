"""An exact reader of what RapidJSON 1.1 accepts, as TensorFlow Serving uses it.

It stops after the first value, knows NaN, Inf and Infinity, does not look at whether text is UTF-8, and
needs no recursion. An error says what RapidJSON says, and at which byte. Strings are `str` with bytes
that are no UTF-8 as surrogate escapes; integers of 64 bits are `int`, all other numbers `float`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from typing import Any, NoReturn

import orjson

from ..errors import InvalidArgumentError
from .json_numbers import overflow


class Repeated(dict[str, Any]):
    """A JSON object in which a key occurs more than once: a lookup finds the first value.

    ``pairs`` are all its members, in the order of the text.
    """

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(reversed(pairs))
        self.pairs = pairs


def members(value: dict[str, Any]) -> Collection[tuple[str, Any]]:
    """All members of a JSON object, repeated keys included."""
    return value.pairs if isinstance(value, Repeated) else value.items()


# No tensor has so many dimensions; each level costs a hundred bytes and more.
MAX_DEPTH = 10_000

_BLANKS = b" \t\r\n"
_QUOTE, _BACKSLASH, _COMMA, _COLON = b'"\\,:'
_OPEN_LIST, _CLOSE_LIST, _OPEN_OBJECT, _CLOSE_OBJECT = b"[]{}"

_BLANK = re.compile(rb"[ \t\r\n]*+")
_TEXT = re.compile(rb'[^"\\\x00-\x1f]*+')
_ESCAPES = {ord(k): v for k, v in zip('"\\/bfnrt', (b'"', b"\\", b"/", b"\b", b"\f", b"\n", b"\r", b"\t"), strict=True)}
_HEX = re.compile(rb"[0-9a-fA-F]{4}")
_WORDS = {ord("n"): (b"null", None), ord("t"): (b"true", True), ord("f"): (b"false", False)}
_INTEGER = re.compile(rb"0|[1-9][0-9]*+")
_TAIL = re.compile(rb"(\.[0-9]*+)?([eE][+-]?[0-9]*+)?")

# What holds no surprises: integers of 64 bits, doubles far from the limits, text without escapes. Whatever
# is not one of these is read step by step.
_EASY = (
    rb"(?:-?(?:0|[1-9][0-9]{0,17}+)(?:\.[0-9]{1,60}+)?+(?:[eE][+-]?[0-9]{1,2}+)?+|NaN|-?Infinity"
    rb'|"[ !#-\[\]-~]*+"|true|false|null)(?=[ \t\r\n,\]])'
)
# So many levels of lists are read at once: the rows, columns and channels of an image.
_RUN_LEVELS = 3


def _run(levels: int) -> bytes:
    """A pattern for the next items of a list, as many as are easy values or lists of them."""
    item = _EASY
    for _ in range(levels):
        item = rb"(?:%b|\[[ \t\r\n]*+(?:%b)?+[ \t\r\n]*+\])" % (_EASY, _separated(item))
    return _separated(item)


def _separated(item: bytes) -> bytes:
    return rb"%b(?:[ \t\r\n]*+,[ \t\r\n]*+%b)*+" % (item, item)


_RUN = re.compile(_run(_RUN_LEVELS))
_TOO_BIG = "Number too big to be stored in double."
# As many digits as the longest integer has, and as many as are surely no overflow.
_UINT64_DIGITS, _SAFE_DIGITS = 20, 300
# Numbers for which it matters in which order RapidJSON multiplies.
HUGE_EXPONENTS = (re.compile(rb"e\+?[0-9]{3}"), re.compile(rb"E\+?[0-9]{3}"))
HUGE_DIGITS = b"1797693134862315"


def read(body: bytes) -> Any:
    """The first value of ``body``; raises `InvalidArgumentError` with RapidJSON's text and offset."""
    return _Reader(body).value()


def _fail(reason: str, at: int) -> NoReturn:
    raise InvalidArgumentError(f"JSON Parse error: {reason} at offset: {at}")


class _Reader:
    def __init__(self, body: bytes) -> None:
        # A NUL ends the document for RapidJSON too.
        self._body = body + b"\0"
        self._at = 0

    def value(self) -> Any:
        for byte in b"\xef\xbb\xbf":  # a byte-order mark, or what is left of one
            self._at += self._body[self._at] == byte
        self._skip()
        # The containers around the one that is being filled, and the keys under which they go on.
        opened: list[list[Any]] = []
        keys: list[str | None] = []
        items: list[Any] = []
        key: str | None = None
        while True:
            byte = self._body[self._at]
            run = self._run() if opened and key is None else []
            if run:
                items += run[:-1]
                value, complete = run[-1], True
            elif byte == _OPEN_LIST:
                value, complete = self._list()
            elif byte == _OPEN_OBJECT:
                value, complete = self._object()
            else:
                value, complete = self._scalar(byte, nested=bool(opened)), True
            if not complete:
                if len(opened) >= MAX_DEPTH:
                    _fail(f"The document is nested deeper than {MAX_DEPTH} levels.", self._at)
                opened.append(items)
                keys.append(key)
                items, key = [], value
                continue
            while True:
                if not opened:
                    return value
                in_list = key is None
                items.append(value if in_list else (key, value))
                self._skip()
                byte = self._body[self._at]
                self._at += 1
                if byte == _COMMA:
                    self._skip()
                    key = None if in_list else self._key()
                    break
                if byte != (_CLOSE_LIST if in_list else _CLOSE_OBJECT):
                    self._at -= 1
                    if in_list:
                        _fail("Missing a comma or ']' after an array element.", self._at)
                    _fail("Missing a comma or '}' after an object member.", self._at)
                value = items if in_list else _as_object(items)
                items, key = opened.pop(), keys.pop()

    def _skip(self) -> None:
        if self._body[self._at] in _BLANKS:
            found = _BLANK.match(self._body, self._at)
            assert found
            self._at = found.end()

    def _run(self) -> list[Any]:
        """As many items of the list as can be read at once, none if already the next one cannot."""
        found = _RUN.match(self._body, self._at)
        if not found:
            return []
        self._at = found.end()
        return _items(found[0])

    def _list(self) -> tuple[Any, bool]:
        """An empty list, else (None, False) at its first element."""
        self._at += 1
        self._skip()
        if self._body[self._at] == _CLOSE_LIST:
            self._at += 1
            return [], True
        return None, False

    def _object(self) -> tuple[Any, bool]:
        """An empty object, else (its first key, False) at that key's value."""
        self._at += 1
        self._skip()
        if self._body[self._at] == _CLOSE_OBJECT:
            self._at += 1
            return {}, True
        return self._key(), False

    def _key(self) -> str:
        if self._body[self._at] != _QUOTE:
            _fail("Missing a name for object member.", self._at)
        key = self._string()
        self._skip()
        if self._body[self._at] != _COLON:
            _fail("Missing a colon after a name of object member.", self._at)
        self._at += 1
        self._skip()
        return key

    def _scalar(self, byte: int, *, nested: bool) -> Any:
        if byte == _QUOTE:
            return self._string()
        if byte in _WORDS:
            word, value = _WORDS[byte]
            if not self._take(word):
                _fail("Invalid value.", self._at)
            return value
        if byte in b"\0]}:,":
            _fail("Invalid value." if nested else "The document is empty.", self._at)
        return self._number()

    def _string(self) -> str:
        self._at += 1
        parts: list[bytes] = []
        while True:
            text = _TEXT.match(self._body, self._at)
            assert text
            self._at = text.end()
            parts.append(text[0])
            byte = self._body[self._at]
            if byte == _QUOTE:
                self._at += 1
                return b"".join(parts).decode("utf-8", "surrogateescape")
            if byte == _BACKSLASH:
                parts.append(self._escape())
            elif byte == 0:
                _fail("Missing a closing quotation mark in string.", self._at)
            else:
                _fail("Invalid escape character in string.", self._at)

    def _escape(self) -> bytes:
        start = self._at
        byte = self._body[start + 1]
        self._at += 2
        if byte in _ESCAPES:
            return _ESCAPES[byte]
        if byte != ord("u"):
            _fail("Invalid escape character in string.", start)
        code = self._hex(start)
        if 0xD800 <= code <= 0xDBFF:
            if self._body[self._at : self._at + 2] != b"\\u":
                _fail("The surrogate pair in string is invalid.", start)
            self._at += 2
            low = self._hex(start)
            if not 0xDC00 <= low <= 0xDFFF:
                _fail("The surrogate pair in string is invalid.", start)
            code = 0x10000 + (code - 0xD800 << 10) + (low - 0xDC00)
        # The second half of a pair alone is let through, as the three bytes that it would have.
        return chr(code).encode("utf-8", "surrogatepass")

    def _hex(self, start: int) -> int:
        digits = _HEX.match(self._body, self._at)
        if not digits:
            _fail("Incorrect hex digit after \\u escape in string.", start)
        self._at += 4
        return int(digits[0], 16)

    def _number(self) -> int | float:
        start = self._at
        sign = b"-" if self._take(b"-") else b""
        found = _INTEGER.match(self._body, self._at)
        if found:
            self._at = found.end()
            integer = found[0]
        else:
            word = self._not_a_number(sign)
        tail = _TAIL.match(self._body, self._at)
        assert tail
        self._at = tail.end()
        if tail[0]:
            # Behind NaN or Infinity too, which it then overrides: Inf.5 is a half.
            return _real(sign, integer if found else b"0", tail, start)
        if not found:
            return word
        if len(integer) <= _UINT64_DIGITS:
            whole = int(sign + integer)
            if -(2**63) <= whole < 2**64:
                return whole
        return _real(sign, integer, tail, start)

    def _not_a_number(self, sign: bytes) -> float:
        if self._body[self._at] in b"IN":
            # The original looks for the second word behind what it has taken of the first: NaInf is infinite.
            if self._take(b"NaN"):
                return math.nan
            if self._take(b"Inf") and (self._body[self._at] != ord("i") or self._take(b"inity")):
                return -math.inf if sign else math.inf
        _fail("Invalid value.", self._at)

    def _take(self, word: bytes) -> bool:
        """Step over a word as far as it is there, and say whether all of it is."""
        for byte in word:
            if self._body[self._at] != byte:
                return False
            self._at += 1
        return True


def _real(sign: bytes, integer: bytes, tail: re.Match[bytes], start: int) -> float:
    fraction, exponent = tail[1] or b"", tail[2] or b""
    if fraction == b"." or (exponent and not exponent[-1:].isdigit()):
        if len(integer) > _SAFE_DIGITS and overflow(sign, integer, b"", b"") is None:
            _fail(_TOO_BIG, start)
        if fraction == b".":
            _fail("Miss fraction part in number.", tail.end(1))
        _fail("Miss exponent in number.", tail.end(2))
    value = float(sign + integer + tail[0])
    if math.isinf(value) or HUGE_DIGITS in integer or any(huge.match(exponent) for huge in HUGE_EXPONENTS):
        edge = overflow(sign, integer, fraction[1:], exponent[1:])
        if edge is None:
            _fail(_TOO_BIG, start)
        if math.isinf(edge) or math.isinf(value):
            return edge
    return value


def _as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else Repeated(pairs)


def _items(text: bytes) -> list[Any]:
    """Easy values and lists of them, separated by commas."""
    is_strict = b"N" not in text and b"I" not in text
    items: list[Any] = (orjson if is_strict else json).loads(b"[%b]" % text)
    return items
