"""The line breaks and blanks of the original's JSON responses.

No JSON parser reads a response with text that is not UTF-8, so that its clients look at its bytes.
Only such responses are laid out as the original writes them; the others are compact.
"""

from __future__ import annotations

import re

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\[\]{}:,"]+', re.DOTALL)
_INDENT = b"    "


def as_original(body: bytes, *, single_line: bool) -> bytes:
    r"""Compact JSON laid out anew, four blanks a level, if it is not UTF-8; else as it is.

    With ``single_line`` the elements of arrays stay on one line, as in answers to the row format and
    of Classify: there only the outermost array ends on a line of its own.

    >>> as_original(b'{"predictions":["\xff",[1,2]]}', single_line=True)
    b'{\n    "predictions": ["\xff", [1, 2]\n    ]\n}'
    """
    try:
        body.decode()
    except UnicodeDecodeError:
        return _lay_out(_TOKEN.findall(body), single_line)
    return body


def _lay_out(tokens: list[bytes], single_line: bool) -> bytes:
    out: list[bytes] = []
    opened: list[bytes] = []
    for i, token in enumerate(tokens):
        on_a_line = single_line and opened[-1:] == [b"["]
        if token in (b"]", b"}"):
            opened.pop()
            outermost = len(opened) == 1
            if tokens[i - 1] not in (b"[", b"{") and (not on_a_line or outermost):
                out.append(b"\n" + _INDENT * len(opened))
            out.append(token)
        elif token in (b"[", b"{"):
            opened.append(token)
            out.append(token)
            empty = tokens[i + 1] in (b"]", b"}")
            if not empty and not (single_line and token == b"["):
                out.append(b"\n" + _INDENT * len(opened))
        elif token == b",":
            out.append(b", " if on_a_line else b",\n" + _INDENT * len(opened))
        else:
            out.append(b": " if token == b":" else token)
    return b"".join(out)
