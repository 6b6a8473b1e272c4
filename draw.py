"""Pieces of reports: comparison plots as PNG bytes, and a self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from . import extras


@dataclass(frozen=True)
class Table:
    """A titled table of text cells; ``note`` is a sentence below it.

    Columns of numbers stand to the right and never wrap; with ``words``, all stand to the left and wrap.
    Without a ``header`` the first column is one.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: bool = False


@dataclass(frozen=True)
class Plot:
    """A titled plot, dark ink on white: PNG bytes, which a dark page inverts, and what it shows in words."""

    title: str
    png: bytes
    alt: str


@dataclass(frozen=True)
class Figure:
    """A picture as PNG with a caption; a small one is shown several times as large, each pixel a square."""

    caption: str
    png: bytes


@dataclass(frozen=True)
class Gallery:
    """A titled section of groups of pictures, (heading, whether it is open at first, pictures); ``note`` is above."""

    title: str
    groups: Sequence[tuple[str, bool, Sequence[Figure]]]
    note: str = ""


Part = Table | Plot | Gallery

_SHOWN_HEIGHT = 140

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem; color: #1c2430;
  background: #fff; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #dde3ea; white-space: nowrap; }
th { color: #56637a; font-weight: 600; } th:first-child, td:first-child { text-align: left; }
table.words th, table.words td { text-align: left; vertical-align: top; white-space: normal;
  overflow-wrap: break-word; }
table.words th:first-child, table.words td:first-child { white-space: nowrap; }
p.note { color: #56637a; } img { max-width: 100%; height: auto; } .scroll { overflow-x: auto; }
summary { cursor: pointer; margin: .3rem 0; } details[open] { margin-bottom: 1.2rem; }
summary::marker { color: #56637a; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; width: min-content; min-width: 11rem; } figure img { display: block; max-width: none; }
figure img.crisp { image-rendering: pixelated; }
figcaption { font-size: .85rem; line-height: 1.35; margin-top: .3rem; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) {
  body { background: #14181f; color: #e4e9f0; } th, td { border-color: #2c3542; }
  th, p.note { color: #9aa7ba; } img.plot { background: #fff; border-radius: 6px; }
  img.adapts { filter: invert(.92) hue-rotate(180deg); border-radius: 6px; }
}
"""


def page(title: str, lead: str, parts: Sequence[Part], images: Sequence[tuple[str, bytes]] = ()) -> str:
    """A whole HTML document, which loads nothing; ``images`` are (caption, PNG bytes) before the parts.

    All texts are escaped, and a content security policy keeps scripts from running.
    """
    body = [f"<h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>"]
    for caption, png in images:
        text = html.escape(caption)
        body.append(f'<h2>{text}</h2><img class="plot" alt="{text}" src="{_data(png)}">')
    body += [_html(part) for part in parts]
    style = base64.b64encode(hashlib.sha256(_CSS.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
        f"<title>{html.escape(title)}</title><style>{_CSS}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _html(part: Part) -> str:
    heading = f"<h2>{html.escape(part.title)}</h2>"
    if isinstance(part, Plot):
        return f'{heading}<img class="adapts" alt="{html.escape(part.alt)}" src="{_data(part.png)}">'
    note = f'<p class="note">{html.escape(part.note)}</p>' if part.note else ""
    if isinstance(part, Gallery):
        return heading + note + "".join(_group(*group) for group in part.groups)
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in part.header)
    rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in part.rows]
    if not head:
        rows = [row.replace("<td>", '<th scope="row">', 1).replace("</td>", "</th>", 1) for row in rows]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    kind = ' class="words"' if part.words else ""
    return (
        f'{heading}<div class="scroll"><table{kind}>{f"<thead><tr>{head}</tr></thead>" if head else ""}'
        f"<tbody>{body}</tbody></table></div>{note}"
    )


def _group(heading: str, is_open: bool, figures: Sequence[Figure]) -> str:
    shown = "".join(
        f'<figure><img class="crisp" width="{_shown_width(figure.png)}" alt="{html.escape(figure.caption)}" '
        f'src="{_data(figure.png)}"><figcaption>{html.escape(figure.caption)}</figcaption></figure>'
        for figure in figures
    )
    state = " open" if is_open else ""
    return f'<details{state}><summary>{html.escape(heading)}</summary><div class="figures">{shown}</div></details>'


def _shown_width(png: bytes) -> int:
    width, height = struct.unpack(">II", png[16:24])  # PNG begins with them
    return int(width * max(1, _SHOWN_HEIGHT // height))


def size_text(count: float) -> str:
    """Bytes for people, in powers of ten.

    >>> size_text(5_312), size_text(26_000), size_text(1_234_567)
    ('5.3 kB', '26 kB', '1.23 MB')
    """
    if count < 10_000:
        return f"{count / 1000:.1f} kB"
    if count < 1_000_000:
        return f"{count / 1000:.0f} kB"
    return f"{count / 1e6:.2f} MB" if count < 1_000_000_000 else f"{count / 1e9:.2f} GB"


def metric_text(name: str | None, value: float | None) -> str:
    """A metric's value: accuracy in percent, errors with three digits, a dash for none."""
    if value is None:
        return "–"
    return f"{value:.2%}" if name == "accuracy" else f"{value:.3g}"


def change_text(name: str | None, value: float | None, before: float | None) -> str:
    """What became of a metric: in points of percent where it is an accuracy, a dash where it is not known."""
    if value is None or before is None:
        return "–"
    change = value - before
    text = f"{100 * change:+.2f}" if name == "accuracy" else f"{change:+.2g}"
    return text if float(text) else "0"


@dataclass(frozen=True)
class Bars:
    """One group of horizontal bars: a title with the unit, and (label, value, text) for each bar."""

    title: str
    bars: Sequence[tuple[str, float, str]]


COLOURS = ("#3b6fb6", "#2a9d8f", "#e9a23b", "#c8553d", "#7a5ea8", "#5b8c3a", "#888888", "#b85c8e")
INK = "#1c2430"
_DPI = 110


@contextmanager
def canvas(width: float, height: float) -> Iterator[tuple[Any, io.BytesIO]]:
    """A figure of this size in inches, and where its PNG is once the block is left.

    The caller's own style and backend neither show in it nor are changed, and no text in it is a formula.
    """
    extras.load("matplotlib", "drawing a report")
    from matplotlib import figure, style

    buffer = io.BytesIO()
    with style.context(["default", {"text.parse_math": False, "font.size": 9, "text.color": INK}]):
        drawn = figure.Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
        yield drawn, buffer
        drawn.savefig(buffer, format="png", dpi="figure")


def short(text: str, longest: int) -> str:
    """A text of one line that is not longer, its middle left out."""
    text = " ".join(text.split())
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[half + 1 - longest :]}"


def bar_charts(title: str, rows: Sequence[Sequence[Bars]]) -> bytes:
    """A grid of horizontal bar charts as one PNG; each row of the grid is one sequence of `Bars`."""
    columns = max(len(row) for row in rows)
    heights = [max(len(group.bars) for group in row) for row in rows]
    with canvas(4.6 * columns, 0.42 * sum(heights) + 0.8 * len(rows) + 0.7) as (figure, png):
        axes = figure.subplots(len(rows), columns, gridspec_kw={"height_ratios": heights}, squeeze=False)
        figure.suptitle(title, fontsize=14, fontweight="bold")
        for row, row_axes in zip(rows, axes, strict=True):
            for axis in row_axes[len(row) :]:
                axis.set_visible(False)
            for group, axis in zip(row, row_axes, strict=False):
                _draw_bars(axis, group)
    return png.getvalue()


def _draw_bars(axis: Any, group: Bars) -> None:
    labels = [label for label, _, _ in group.bars]
    values = [value for _, value, _ in group.bars]
    axis.barh(labels, values, color=[COLOURS[i % len(COLOURS)] for i in range(len(values))], height=0.62)
    axis.invert_yaxis()
    axis.set_title(group.title, fontsize=10, loc="left")
    axis.set_xlim(0, max(values, default=1.0) * 1.3 or 1.0)
    axis.xaxis.set_visible(False)
    axis.tick_params(axis="y", length=0, labelsize=9)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
    for i, (_, value, text) in enumerate(group.bars):
        axis.text(value, i, f" {text}", va="center", fontsize=9)
