"""The picture of a comparison: what it shows is to scale, and its labels can be read."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import servable.export.comparison as module
from servable import draw
from servable.export.comparison import Column, Scatter, comparison

BLUE, TEAL = (0x3B, 0x6F, 0xB6), (0x2A, 0x9D, 0x8F)


def pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def longest(png: bytes, colour: tuple[int, int, int]) -> int:
    """The longest row of pixels of a colour."""
    return int((pixels(png) == colour).all(axis=-1).sum(axis=1).max())


def cells(*values: float | None) -> list[tuple[float | None, str]]:
    return [(value, str(value)) for value in values]


ROWS = [("a", "first"), ("b", "second")]


def test_bars_begin_at_zero() -> None:
    png = comparison("", ROWS, [Column("", cells(1.0, 4.0))])
    assert longest(png, TEAL) / longest(png, BLUE) == pytest.approx(4.0, rel=0.05)


def test_log_bars_are_as_long_as_they_have_digits() -> None:
    # The axis begins at 1e-7: the bars are one and five powers of ten long.
    png = comparison("", ROWS, [Column("", cells(1e-6, 1e-2), "log")])
    assert longest(png, TEAL) / longest(png, BLUE) == pytest.approx(5.0, rel=0.05)


def test_an_error_of_zero_is_no_bar() -> None:
    png = comparison("", ROWS, [Column("", cells(0.0, 1e-2), "log")])
    assert 0 < longest(png, BLUE) < 12 < longest(png, TEAL)  # the ring


def test_what_is_next_to_nothing_looks_like_it() -> None:
    """On an axis of dots, 0.001 of 0.9 is less than 7 % of the width."""

    def places(second: float) -> float:
        found = pixels(comparison("", ROWS, [Column("", cells(0.9, second), "dots")]))
        centres = [np.argwhere((found == colour).all(axis=-1))[:, 1].mean() for colour in (BLUE, TEAL)]
        return abs(float(centres[0] - centres[1])) / found.shape[1]

    assert 0.005 < places(0.901) < 0.07
    assert places(0.5) > 0.5


@contextmanager
def kept(figures: list[Any], *size: float) -> Iterator[Any]:
    with draw.canvas(*size) as (figure, png):
        figures.append(figure)
        yield figure, png


LABELS = ["saved_model", "tflite", "tflite float16", "tflite dynamic", "tflite int8", "tflite int16x8"]
LABELS += ["onnx", "onnx float16", "onnx int8"]


@pytest.mark.parametrize(
    "points",
    [
        [(100.0, 0.9)] * 9,
        [(100.0 + i / 10, 0.9 + i / 1e5) for i in range(9)],
        [(10.0**i, 0.0 if i % 2 else 10.0**-i) for i in range(9)],
        [(318.0, 0.9), (218.0, 0.9), (112.0, 0.9), (61.0, 0.9), (62.0, 0.9), (64.0, 0.9), (219.0, 0.9), (113.0, 0.9)],
    ],
    ids=["one place", "close by", "far apart", "as in cnn"],
)
@pytest.mark.parametrize("log_y", [True, False])
def test_labels_cover_no_point_and_no_label(
    monkeypatch: pytest.MonkeyPatch, points: list[tuple[float, float]], log_y: bool
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(module, "canvas", lambda *size: kept(figures, *size))
    rows = [(label, label.split()[0]) for label in LABELS[: len(points)]]
    columns = [Column("size", cells(*(x for x, _ in points)))]
    named = [(label, group, x, y) for (label, group), (x, y) in zip(rows, points, strict=True)]
    comparison("", rows, columns, Scatter("", ("x", "y"), named, str, str, log_y=log_y))
    axis = figures[0].axes[-1]
    renderer = figures[0].canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axis.texts if text.get_text()]
    assert [text.get_text() for text in axis.texts if text.get_text()] == [label for label, _ in rows]
    assert not [1 for one, other in combinations(boxes, 2) if one.shrunk(0.98, 0.9).overlaps(other.shrunk(0.98, 0.9))]
    inside = axis.get_window_extent(renderer)
    assert all(inside.x0 - 1 <= box.x0 and box.x1 <= inside.x1 + 1 for box in boxes)
    centres = [axis.transData.transform((line.get_xdata()[0], line.get_ydata()[0])) for line in axis.lines]
    assert not [1 for box in boxes for x, y in centres if box.contains(x, y)]


@pytest.mark.parametrize(
    "columns",
    [
        [
            Column("nothing known", cells(None, None)),
            Column("", cells(None, None), "log"),
            Column("", cells(None, None), "dots"),
        ],
        [Column("zeros", cells(0.0, 0.0)), Column("", cells(0.0, 0.0), "log", [0.0, None])],
        [Column("not finite", cells(float("nan"), float("inf"))), Column("", cells(float("nan"), float("inf")), "log")],
        [Column("$x_1$ \\frac{", [(1.0, "$a_b"), (2.0, "$$")], "dots", reference=-5.0)],
    ],
)
@pytest.mark.filterwarnings("error")
def test_any_values_can_be_drawn(columns: list[Column]) -> None:
    rows = [("$a_b$ <script> " * 9, "x"), ("\nb\n", "y")]
    assert pixels(comparison("$\\frac{" * 50, rows, columns)).shape[1] == 1100


@pytest.mark.filterwarnings("error")
def test_the_caller_s_style_is_neither_seen_nor_changed() -> None:
    import matplotlib as mpl

    rows, columns = [("a", "x")], [Column("size", cells(1.0))]
    before = comparison("t", rows, columns)
    with mpl.rc_context({"figure.facecolor": "black", "font.size": 30, "backend": "svg"}):
        assert comparison("t", rows, columns) == before
        assert mpl.rcParams["font.size"] == 30
        assert mpl.rcParams["backend"] == "svg"
    assert (pixels(before)[0, 0] == 255).all()
