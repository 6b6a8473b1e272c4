"""Flatbuffers by field numbers: tables that are written. `inspection.flatbuffer` reads them.

The format is https://flatbuffers.dev/internals/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import extras

# What TFLite's schema asks of the data of a model's buffers.
_CONTENT_ALIGNMENT = 16


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
