"""Flatbuffers by field numbers: tables that are read with every offset checked, and tables that are written.

The format is https://flatbuffers.dev/internals/.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import extras
from ..errors import ExportError

# What TFLite's schema asks of the data of a model's buffers.
_CONTENT_ALIGNMENT = 16


class Table:
    """A table of a flatbuffer. Every read is checked against the end of the file."""

    def __init__(self, data: bytes, position: int) -> None:
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

    def text(self, field: int) -> str:
        """A string, of printable characters."""
        start, size = self.vector(field, 1)
        found = self.data[start : start + size].decode(errors="replace")
        if not found.isprintable():
            raise damaged()
        return found

    def numbers(self, field: int) -> tuple[int, ...]:
        """A vector of 32-bit integers; empty if the field is absent."""
        start, count = self.vector(field, 4)
        return struct.unpack_from(f"<{count}i", self.data, start)

    def tables(self, field: int) -> list[Table]:
        """A vector of tables; empty if the field is absent."""
        start, count = self.vector(field, 4)
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


def read(kind: str, data: bytes, position: int) -> int:
    """An integer of `struct` format ``kind``; `ExportError` where it would be outside of the file."""
    if not 0 <= position <= len(data) - struct.calcsize(f"<{kind}"):
        raise damaged()
    value: int = struct.unpack_from(f"<{kind}", data, position)[0]
    return value


def damaged() -> ExportError:
    """The error for a file whose offsets lead nowhere."""
    return ExportError("the TFLite file is damaged; convert the model again")


class Writer:
    """Writes tables into a flatbuffer, parts before wholes; a place in it is an int."""

    def __init__(self) -> None:
        flatbuffers: Any = extras.load("flatbuffers", "packing TFLite Metadata")
        self.builder = flatbuffers.Builder()

    def text(self, value: str) -> int | None:
        """A string; None, an absent field, if it is empty."""
        return int(self.builder.CreateString(value)) if value else None

    def floats(self, values: Sequence[float]) -> int:
        """A vector of float32."""
        return int(self.builder.CreateNumpyVector(np.asarray(values, np.float32)))

    def vector(self, places: Sequence[int]) -> int:
        """A vector of tables."""
        self.builder.StartVector(4, len(places), 4)
        for place in reversed(places):
            self.builder.PrependUOffsetTRelative(place)
        return int(self.builder.EndVector())

    def content(self, data: bytes) -> int:
        """A vector of bytes that starts where a model's buffers must."""
        self.builder.Prep(_CONTENT_ALIGNMENT, len(data))
        return int(self.builder.CreateByteVector(data))

    def table(
        self,
        parts: Mapping[int, int | None],
        byte: tuple[int, int] | None = None,
        uint: tuple[int, int] | None = None,
    ) -> int:
        """A table with ``parts`` (field → place; None is absent) and at most one number of each kind."""
        self.builder.StartObject(1 + max([*parts, *(number[0] for number in (byte, uint) if number)], default=-1))
        for field, place in parts.items():
            if place is not None:
                self.builder.PrependUOffsetTRelativeSlot(field, place, None)
        if uint:
            self.builder.PrependUint32Slot(*uint, 0)
        if byte:
            self.builder.PrependByteSlot(*byte, 0)
        return int(self.builder.EndObject())

    def finish(self, root: int, identifier: bytes) -> bytes:
        """The finished flatbuffer."""
        self.builder.Finish(root, identifier)
        return bytes(self.builder.Output())
