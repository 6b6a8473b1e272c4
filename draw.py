"""Pieces of reports: comparison plots as PNG bytes, and a self-contained HTML page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import extras


@dataclass(frozen=True)
class Table:
    """A titled table of text cells; ``note`` is a sentence below it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Bars:
    """One group of horizontal bars: a title with the unit, and (label, value, text) for each bar."""

    title: str
    bars: Sequence[tuple[str, float, str]]


_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem; color: #1c2430; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #dde3ea; white-space: nowrap; }
th { color: #56637a; font-weight: 600; } th:first-child, td:first-child { text-align: left; }
p.note { color: #56637a; } img { max-width: 100%; } .scroll { overflow-x: auto; }
@media (prefers-color-scheme: dark) {
  body { background: #14181f; color: #e4e9f0; } th, td { border-color: #2c3542; }
  th, p.note { color: #9aa7ba; } img.plot { background: #fff; border-radius: 6px; }
}
"""


def page(title: str, lead: str, tables: Sequence[Table], images: Sequence[tuple[str, bytes]] = ()) -> str:
    """A whole HTML document; ``images`` are (caption, PNG bytes), embedded in the page."""
    parts = [f"<h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>"]
    for caption, png in images:
        data = base64.b64encode(png).decode()
        text = html.escape(caption)
        parts.append(f'<h2>{text}</h2><img class="plot" alt="{text}" src="data:image/png;base64,{data}">')
    for table in tables:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
        )
        note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
        parts.append(
            f'<h2>{html.escape(table.title)}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>{note}"
        )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_CSS}</style><body>{''.join(parts)}</body></html>\n"
    )


def _pyplot() -> Any:
    matplotlib = extras.load("matplotlib", "drawing a report")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def bar_charts(title: str, rows: Sequence[Sequence[Bars]]) -> bytes:
    """A grid of horizontal bar charts as one PNG; each row of the grid is one sequence of `Bars`."""
    plt = _pyplot()
    columns = max(len(row) for row in rows)
    heights = [max(len(group.bars) for group in row) for row in rows]
    figure, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(4.6 * columns, 0.42 * sum(heights) + 0.8 * len(rows) + 0.7),
        gridspec_kw={"height_ratios": heights},
        squeeze=False,
        layout="constrained",
    )
    figure.suptitle(title, fontsize=14, fontweight="bold")
    for row, row_axes in zip(rows, axes, strict=True):
        for axis in row_axes[len(row) :]:
            axis.set_visible(False)
        for group, axis in zip(row, row_axes, strict=False):
            _draw_bars(axis, group)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


_COLOURS = ("#3b6fb6", "#2a9d8f", "#e9a23b", "#c8553d", "#7a5ea8", "#5b8c3a", "#888888", "#b85c8e")


def _draw_bars(axis: Any, group: Bars) -> None:
    labels = [label for label, _, _ in group.bars]
    values = [value for _, value, _ in group.bars]
    axis.barh(labels, values, color=[_COLOURS[i % len(_COLOURS)] for i in range(len(values))], height=0.62)
    axis.invert_yaxis()
    axis.set_title(group.title, fontsize=10, loc="left")
    axis.set_xlim(0, max(values, default=1.0) * 1.3 or 1.0)
    axis.xaxis.set_visible(False)
    axis.tick_params(axis="y", length=0, labelsize=9)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
    for i, (_, value, text) in enumerate(group.bars):
        axis.text(value, i, f" {text}", va="center", fontsize=9)
