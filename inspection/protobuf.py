"""Protocol buffers from files that nobody vouches for: walked first, then parsed.

Two bytes on disk can make a message of a hundred in memory, so a file of some megabytes could ask for
gigabytes. The walk counts the fields before anything is made of them, and sees what is cut off.
The format is https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import mmap
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from ..errors import ArtifactError

# What a protocol buffer can be; beyond it no writer and no reader works.
MAX_BYTES = 2**31 - 1
# Strings and messages of one file; a graph of a hundred thousand operations has some two million.
MAX_FIELDS = 5_000_000


def parse_file(path: Path, message: Any, what: str) -> Any:
    """The message of class ``message`` in a file; ``what`` names its kind ("an ONNX file").

    Raises `ArtifactError` that names the file if it is empty, is not such a message, or is too large.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size == 0:
                raise ArtifactError(f"{path} is empty: not {what}")
            if size > MAX_BYTES:
                raise ArtifactError(f"{path} is not {what}: it is larger than 2 GiB")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return parse(content, message, path, what)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error


def parse(content: bytes | mmap.mmap, message: Any, path: Path, what: str) -> Any:
    """The same for what was read already from ``path``."""
    try:
        _walk(content, message.DESCRIPTOR)
        return message.FromString(content[:])
    except (NotWellFormedError, DecodeError) as error:
        raise ArtifactError(f"{path} is not {what}, or is damaged: {error}") from error


class NotWellFormedError(Exception):
    """The bytes are not fields of a message, or are too many."""


_STRING = "string"


@cache
def _parts(descriptor: Any) -> dict[int, Any]:
    """The fields of a message that are messages or strings, by number: what they are made of."""
    found: dict[int, Any] = {}
    for field in descriptor.fields:
        if field.message_type is not None:
            found[field.number] = field.message_type
        elif field.type == field.TYPE_STRING:
            found[field.number] = _STRING
    return found


def _walk(data: bytes | mmap.mmap, descriptor: Any) -> None:
    """Go through all fields of a message and of those in it, and raise `NotWellFormedError` where they are none."""
    todo = [(0, len(data), descriptor)]
    count = 0
    while todo:
        position, end, descriptor = todo.pop()
        inner = _parts(descriptor)
        while position < end:
            tag, position = varint(data, position, end)
            kind = tag & 7
            if kind == 2:
                length, position = varint(data, position, end)
                if length > end - position:
                    raise NotWellFormedError("it is cut off")
                count += 1
                if count > MAX_FIELDS:
                    raise NotWellFormedError(f"it has more than {MAX_FIELDS} fields")
                within = inner.get(tag >> 3)
                if within is _STRING:
                    _check_text(data[position : position + length])
                elif within is not None:
                    todo.append((position, position + length, within))
                position += length
            elif kind == 0:
                _, position = varint(data, position, end)
            elif kind in (1, 5):
                position += 8 if kind == 1 else 4
            else:
                raise NotWellFormedError("it does not consist of fields")
            if tag < 8 or position > end:
                raise NotWellFormedError("it does not consist of fields")


def _check_text(text: bytes) -> None:
    """Proto2 takes any bytes for a string, and gives bytes where no text was written."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise NotWellFormedError("a name in it is no text") from error


def varint(data: bytes | mmap.mmap, position: int, end: int) -> tuple[int, int]:
    """An integer in groups of seven bits, and where it ends; raises `NotWellFormedError` where it does not end."""
    value = shift = 0
    while position < end:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            break
    raise NotWellFormedError("it is cut off")
