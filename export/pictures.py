"""Input rows as pictures, and what a model found in them drawn on or beside them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .cases import pixels
from .source import Source
from .source_model import Arrays

Pixels = NDArray[np.uint8]

SOURCE_COLOUR, ARTIFACT_COLOUR = (46, 160, 67), (230, 110, 30)
# Of the classes of a mask, over and over; 0 is often the background.
_CLASS_COLOURS = np.array(
    [
        (40, 40, 48),
        (59, 111, 182),
        (233, 162, 59),
        (42, 157, 143),
        (200, 85, 61),
        (122, 94, 168),
        (91, 140, 58),
        (184, 92, 142),
        (150, 150, 150),
    ],
    np.uint8,
)
# Boxes are drawn on pictures of about this size, and larger ones are made as small.
_SIDE = 256
_GAP = 2
_MIN_SIDE = 8


def has_pictures(source: Source) -> bool:
    """Whether the source's input rows are pictures that somebody took: not random ones."""
    return not source.data.random and _input(source) is not None


def of_row(source: Source, inputs: Arrays, row: int) -> Pixels:
    """The picture of a row, (height, width) where it is grey and else (height, width, 3)."""
    array = inputs[_input(source) or ""]
    picture = pixels(source, array[row : row + 1])[0] if source.preprocessing else _stretched(array[row])
    return picture[:, :, 0] if picture.shape[-1] == 1 else picture


def encoded(picture: Pixels) -> bytes:
    """A picture as PNG, pixel by pixel, unless it is a large one."""
    image = Image.fromarray(picture)
    image.thumbnail((2 * _SIDE if _is_wide(picture) else _SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def with_boxes(picture: Pixels, found: Sequence[tuple[NDArray[Any], tuple[int, int, int]]]) -> Pixels:
    """The picture, enlarged where it is small, with boxes ([ymin, xmin, ymax, xmax] in shares of its sides)."""
    height, width = picture.shape[:2]
    times = max(1, _SIDE // max(height, width))
    image = Image.fromarray(picture).convert("RGB")
    image = image.resize((width * times, height * times), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    last = np.array([image.height - 1, image.width - 1] * 2)
    for i, (boxes, colour) in enumerate(found):
        # Each lies in the middle of the line of the one before, where both models found the same.
        width = max(1, 5 - 3 * i)
        for box in np.clip(np.nan_to_num(boxes.astype(np.float64)), 0, 1):
            top, left, bottom, right = np.rint(box * last).astype(int).tolist()
            outer = width // 2
            corners = left - outer, top - outer, max(left, right) + outer, max(top, bottom) + outer
            draw.rectangle(corners, outline=colour, width=width)
    return np.asarray(image)


def with_masks(picture: Pixels, masks: Sequence[NDArray[Any]]) -> Pixels:
    """The picture with masks of class ids beside it, each class in a colour of its own."""
    height, width = picture.shape[:2]
    parts = [Image.fromarray(picture).convert("RGB")]
    for mask in masks:
        coloured = Image.fromarray(_CLASS_COLOURS[mask.astype(np.int64) % len(_CLASS_COLOURS)])
        parts.append(coloured.resize((width, height), Image.Resampling.NEAREST))
    sheet = Image.new("RGB", (len(parts) * (width + _GAP) - _GAP, height), (255, 255, 255))
    for i, part in enumerate(parts):
        sheet.paste(part, (i * (width + _GAP), 0))
    return np.asarray(sheet)


def _is_wide(picture: Pixels) -> bool:
    return bool(picture.shape[1] > 2 * picture.shape[0])


def _input(source: Source) -> str | None:
    """The input that pictures become, or looks like one where nobody says how they do."""
    how = source.preprocessing
    for name, array in source.data.inputs.items():
        if how and array[0].size == how.height * how.width * how.channels:
            return name
        height, width, channels = array.shape[1:] if array.ndim == 4 else (0, 0, 0)
        if not how and channels in (1, 3) and min(height, width) >= _MIN_SIDE and array.dtype.kind in "fu":
            return name
    return None


def _stretched(row: NDArray[Any]) -> Pixels:
    """Any numbers as pixels: bytes as they are, shares in [0, 1] times 255, others from the least to the largest."""
    if row.dtype == np.uint8:
        return row
    values = np.nan_to_num(row.astype(np.float64))
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 255:
        low, high = 0.0, 1.0 if high <= 1 else 255.0
    return np.rint((values - low) / ((high - low) or 1.0) * 255).astype(np.uint8)
