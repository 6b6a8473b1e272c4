"""The picture of a comparison: things as rows, what was measured of them as columns, and a scatter plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..draw import COLOURS, INK, canvas, short


@dataclass(frozen=True)
class Column:
    """What a comparison shows of each row: (value, text), the value None where there is none.

    ``bars`` begin at zero. ``log`` bars begin below the smallest value, and a value of zero is a ring
    there; ``marks`` are second values on them. ``dots`` are on an axis around their values, which
    ``reference`` is one more of, drawn as a line.
    """

    title: str
    cells: Sequence[tuple[float | None, str]]
    kind: Literal["bars", "log", "dots"] = "bars"
    marks: Sequence[float | None] = ()
    reference: float | None = None


@dataclass(frozen=True)
class Scatter:
    """Labelled points (label, group, x, y), and how the axes' numbers are written.

    With ``log_y``, a value of zero is a ring below the smallest one.
    """

    title: str
    axes: tuple[str, str]
    points: Sequence[tuple[str, str, float, float]]
    x_text: Callable[[float], str]
    y_text: Callable[[float], str]
    log_y: bool = False


# Neither light nor dark: they are seen on white, and inverted on black.
_COLOURS = (COLOURS[0], COLOURS[1], COLOURS[3], COLOURS[4], COLOURS[5], COLOURS[7])
_FAINT, _GREY = "#dde3ea", "#56637a"
_LONGEST_LABEL, _LONGEST_TITLE = 28, 76
# The part of the picture's width that texts beside the marks take in each column.
_TEXT_SHARE = 0.095
# An axis of dots spans this part of their values at least: what is next to nothing looks like it.
_LEAST_SPAN = 0.02
# Sizes that differ by more have a log axis.
_WIDE = 8
# In pixels: where a label may be, and from where on a line leads to it.
_DISTANCES = (12, 20, 30, 42, 56, 72, 92, 114, 140, 170)
_FAR = 16
# What a log axis shows where there is nothing but zeros.
_NO_VALUES = (1e-8, 1e-7)


def comparison(
    title: str, rows: Sequence[tuple[str, str]], columns: Sequence[Column], scatter: Scatter | None = None
) -> bytes:
    """Things side by side as one PNG, 1,100 pixels wide: a row for each (label, group), and a scatter plot below.

    Things of one group have one colour.
    """
    groups = list(dict.fromkeys(group for _, group in rows))
    colours = {group: _COLOURS[i % len(_COLOURS)] for i, group in enumerate(groups)}
    height = 0.34 * len(rows) + 0.75
    with canvas(10, 0.5 + height + (3.6 if scatter else 0)) as (figure, png):
        figure.suptitle(short(title, _LONGEST_TITLE), fontsize=14, fontweight="bold")
        figure.get_layout_engine().set(h_pad=0.1, w_pad=0.06)
        grid = figure.add_gridspec(
            2 if scatter else 1, len(columns), height_ratios=[height, 3.6] if scatter else [height]
        )
        for i, column in enumerate(columns):
            axis = figure.add_subplot(grid[0, i])
            _draw_column(axis, column, [colours[group] for _, group in rows], 1 - _TEXT_SHARE * len(columns))
            labels = [short(label, _LONGEST_LABEL) for label, _ in rows] if i == 0 else [""] * len(rows)
            axis.set_yticks(range(len(rows)), labels, fontsize=9.5)
        if scatter:
            _draw_scatter(figure, figure.add_subplot(grid[1, :]), scatter, colours)
    return png.getvalue()


def _draw_column(axis: Any, column: Column, colours: Sequence[str], share: float) -> None:
    """Marks in this share of the axis, and texts beside them."""
    values = [value if value is not None and math.isfinite(value) else None for value, _ in column.cells]
    marks = [value for value in column.marks if value is not None and math.isfinite(value)]
    known = [value for value in (*values, *marks, column.reference) if value is not None]
    low, high = _range(known, column.kind)
    if column.kind == "log":
        axis.set_xscale("log")
        axis.set_xlim(low, low * (high / low) ** (1 / share))
        _log_ticks(axis.xaxis, low, high)
    else:
        axis.set_xlim(low, low + (high - low) / share)
        axis.set_xticks([])
    for i, (value, colour) in enumerate(zip(values, colours, strict=True)):
        axis.text(1, i, column.cells[i][1], transform=axis.get_yaxis_transform(), ha="right", va="center", fontsize=9)
        axis.axhline(i, 0, share, color=_FAINT, lw=0.7, zorder=0)
        if value is None:
            continue
        if column.kind == "dots":
            axis.plot(value, i, "o", color=colour, ms=7, clip_on=False)
        elif column.kind == "log" and value <= 0:
            axis.plot(low, i, "o", mfc="white", mec=colour, ms=7, mew=1.5, clip_on=False, zorder=3)
        else:
            axis.barh(i, value - (low if column.kind == "log" else 0), left=low, color=colour, height=0.6)
        mark = column.marks[i] if i < len(column.marks) else None
        if mark is not None and mark > 0 and math.isfinite(mark):
            axis.plot(mark, i, "|", color=INK, ms=9, mew=1.6, clip_on=False, zorder=3)
    if column.reference is not None:
        axis.axvline(column.reference, color=INK, lw=0.9, ls="--", zorder=1)
    axis.set_ylim(len(values) - 0.4, -0.6)
    axis.set_title(column.title, fontsize=9.5, loc="left", fontweight="bold", color=INK)
    axis.tick_params(axis="y", length=0)
    for side in ("top", "right", "bottom") if column.kind != "dots" else axis.spines:
        axis.spines[side].set_visible(False)


def _range(values: Sequence[float], kind: str) -> tuple[float, float]:
    """Where an axis begins and ends for these values."""
    if kind == "log":
        positive = [value for value in values if value > 0] or list(_NO_VALUES)
        return 10.0 ** math.floor(math.log10(min(positive)) - 0.3), max(positive)
    if kind == "bars":
        return 0.0, max(values, default=1.0) or 1.0
    low, high = min(values, default=0.0), max(values, default=1.0)
    missing = max(_LEAST_SPAN * max(abs(low), abs(high)) - (high - low), 0.0)
    margin = missing / 2 + 0.15 * (high - low + missing) or 1.0
    return low - margin, high + margin


def _log_ticks(axis: Any, low: float, high: float, zero: str = "") -> None:
    """At most five powers of ten; ``zero`` is what stands at the lower end, if anything."""
    first, last = round(math.log10(low)), math.floor(math.log10(high) + 1e-9)
    step = max(1, -(-(last - first) // 4))
    ticks = list(range(first, last + 1, step))
    texts = ["1" if power == 0 else f"1e{power}" for power in ticks]
    if zero:
        texts[0] = zero
    axis.set_ticks([10.0**power for power in ticks], texts, fontsize=8, color=_GREY)
    axis.set_ticks([], minor=True)


def _draw_scatter(figure: Any, axis: Any, scatter: Scatter, colours: Mapping[str, str]) -> None:
    from matplotlib.ticker import LogLocator

    xs = [x for _, _, x, _ in scatter.points]
    ys = [y for _, _, _, y in scatter.points]
    low, high = _range(ys, "log" if scatter.log_y else "dots")
    if scatter.log_y:
        axis.set_yscale("log")
        axis.set_ylim(low * 0.7, high * (high / low) ** 0.12)
        _log_ticks(axis.yaxis, low, high, zero="0" if min(ys) <= 0 else "")
    else:
        axis.set_ylim(low, high)
        axis.yaxis.set_major_formatter(lambda value, _: scatter.y_text(value))
    wide = max(xs) > _WIDE * min(xs) > 0
    if wide:
        axis.set_xscale("log", subs=[])
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(xs) < 100 * min(xs) else (1,), numticks=9))
    axis.set_xlim(min(xs) / 1.5 if wide else 0, max(xs) * (3 if wide else 1.2) or 1)
    axis.xaxis.set_major_formatter(lambda value, _: scatter.x_text(value) if value else "0")
    for _, group, x, y in scatter.points:
        zero = scatter.log_y and y <= 0
        axis.plot(
            x, low if zero else y, "o", ms=8, mec=colours[group], mfc="white" if zero else colours[group], mew=1.5
        )
    axis.set_title(scatter.title, fontsize=9.5, loc="left", fontweight="bold", color=INK)
    axis.set_xlabel(scatter.axes[0])
    axis.set_ylabel(scatter.axes[1])
    axis.grid(color=_FAINT, lw=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(length=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    _place_labels(figure, axis, [(label, x, max(y, low) if scatter.log_y else y) for label, _, x, y in scatter.points])


def _place_labels(figure: Any, axis: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Write each label near its point, where it covers no point and no other label."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # only now is it known where the axes are
    inside = axis.get_window_extent(renderer)
    places = [axis.transData.transform((x, y)) for _, x, y in points]
    taken = [Bbox.from_bounds(px - 7, py - 7, 14, 14) for px, py in places]
    pixels: dict[str, Any] = {"textcoords": "offset pixels", "annotation_clip": False}
    for (label, x, y), (px, py) in zip(points, places, strict=True):
        text = axis.annotate(short(label, _LONGEST_LABEL), (x, y), (0, 0), fontsize=9, va="center", **pixels)
        text.set_in_layout(False)
        extent = text.get_window_extent(renderer)
        box, least = extent, math.inf
        for distance, angle in ((d, a) for d in _DISTANCES for a in range(0, 360, 45)):
            dx, dy = distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle))
            left = px + dx - (0 if dx > 1 else extent.width if dx < -1 else extent.width / 2)
            tried = Bbox.from_bounds(left, py + dy - extent.height / 2, extent.width, extent.height)
            hidden = sum(_overlap(tried, other) for other in taken)
            hidden += extent.width * extent.height - _overlap(tried, inside)
            if hidden < least - 1:
                box, least = tried, hidden
            if least <= 1:
                break
        text.set_position((box.x0 - px, box.y0 + box.height / 2 - py))
        taken.append(box)
        nearest = min(max(px, box.x0), box.x1) - px, min(max(py, box.y0), box.y1) - py
        if math.hypot(*nearest) > _FAR:
            line = {"arrowstyle": "-", "color": "#9aa7ba", "lw": 0.8, "shrinkA": 0, "shrinkB": 3}
            axis.annotate("", (x, y), nearest, arrowprops=line, **pixels).set_in_layout(False)


def _overlap(a: Any, b: Any) -> float:
    """The area that two boxes share."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(max(width, 0.0) * max(height, 0.0))
