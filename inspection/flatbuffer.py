"""Flatbuffers by field numbers: tables that are read with every offset checked.

The format is https://flatbuffers.dev/internals/.
"""

from __future__ import annotations

import mmap
import struct
from typing import Any

from ..errors import ArtifactError

Data = bytes | mmap.mmap

# Many offsets may lead to one place, so that a small file could stand for a large model.
_MAX_ELEMENTS = 1_000_000


class Table:
    """A table of a flatbuffer. Every read is checked against the end of the file.

    All methods raise `ArtifactError` where an offset leads out of it; the caller names the file.
    """

    __slots__ = ("_fields", "_vtable", "data", "position")

    def __init__(self, data: Data, position: int) -> None:
        self.data = data
        self.position = position
        self._vtable = position - read("i", data, position)
        size, inline = read("H", data, self._vtable), read("H", data, self._vtable + 2)
        self._fields = max(0, size - 4) // 2
        if self._vtable + size > len(data) or position + inline > len(data):
            raise damaged()

    def target(self, field: int) -> int | None:
        """Where the table, vector or string of an offset field starts; None if the field is absent."""
        place = self._place(field)
        return None if place is None else place + read("I", self.data, place)

    def number(self, field: int, kind: str = "I") -> int:
        """An integer field of `struct` format ``kind``; 0, the schema's default, if it is absent."""
        place = self._place(field)
        return 0 if place is None else read(kind, self.data, place)

    def content(self, field: int, limit: int | None = None) -> bytes:
        """A string or a vector of bytes, of any characters; at most ``limit`` of them."""
        start, size = self.vector(field, 1)
        return self.data[start : start + (size if limit is None else min(size, limit))]

    def text(self, field: int) -> str:
        """A string, of printable characters."""
        found = self.content(field).decode(errors="replace")
        if not found.isprintable():
            raise damaged()
        return found

    def numbers(self, field: int, kind: str = "i", limit: int | None = None) -> tuple[Any, ...]:
        """A vector of numbers, by default of 32-bit integers; empty if the field is absent.

        At most the first ``limit`` of them.
        """
        start, count = self.vector(field, struct.calcsize(f"<{kind}"))
        return struct.unpack_from(f"<{count if limit is None else min(count, limit)}{kind}", self.data, start)

    def table(self, field: int) -> Table | None:
        """A table; None if the field is absent."""
        target = self.target(field)
        return None if target is None else Table(self.data, target)

    def tables(self, field: int, limit: int = _MAX_ELEMENTS) -> list[Table]:
        """A vector of tables, of which there may be ``limit``; empty if the field is absent."""
        start, count = self.vector(field, 4)
        if count > limit:
            raise damaged()
        places = range(start, start + 4 * count, 4)
        return [Table(self.data, place + read("I", self.data, place)) for place in places]

    def vector(self, field: int, width: int) -> tuple[int, int]:
        """Start and length of a vector whose elements take ``width`` bytes; all of it is in the file."""
        position = self.target(field)
        if position is None:
            return 0, 0
        count = read("I", self.data, position)
        if position + 4 + count * width > len(self.data):
            raise damaged()
        return position + 4, count

    def has(self, field: int) -> bool:
        """Whether the field is there."""
        return self._place(field) is not None

    @property
    def fields(self) -> int:
        """How many fields the schema had that the table was written with, at least."""
        return self._fields

    def _place(self, field: int) -> int | None:
        if field >= self._fields:
            return None
        offset = read("H", self.data, self._vtable + 4 + 2 * field)
        return self.position + offset if offset else None


def read(kind: str, data: Data, position: int) -> int:
    """An integer of `struct` format ``kind``; `ArtifactError` where it would be outside of the file."""
    if not 0 <= position <= len(data) - struct.calcsize(f"<{kind}"):
        raise damaged()
    value: int = struct.unpack_from(f"<{kind}", data, position)[0]
    return value


def damaged() -> ArtifactError:
    """The error for a file whose offsets lead nowhere."""
    return ArtifactError("it is damaged or cut off")
