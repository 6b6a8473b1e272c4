"""Report pieces: pages that no text can break out of, and plots that are really PNG files."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from servable.draw import (
    Bars,
    Figure,
    Gallery,
    Part,
    Plot,
    Table,
    bar_charts,
    change_text,
    metric_text,
    page,
    short,
    size_text,
)

HOSTILE = """<script>alert("x")</script> & 'quoted' """


class Tags(HTMLParser):
    """Collects the tags, the attributes and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(html: str) -> Tags:
    parser = Tags()
    parser.feed(html)
    parser.close()
    return parser


def hostile_page() -> str:
    table = Table(HOSTILE, [HOSTILE], [[HOSTILE]], note=HOSTILE)
    return page(HOSTILE, HOSTILE, [table], [(HOSTILE, b"png")])


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, format="PNG")
    return buffer.getvalue()


def hostile_parts() -> list[Part]:
    return [
        Table(HOSTILE, [], [[HOSTILE, HOSTILE]], HOSTILE, words=True),
        Plot(HOSTILE, b"png", HOSTILE),
        Gallery(HOSTILE, [(HOSTILE, True, [Figure(HOSTILE, png(28, 28))])], HOSTILE),
    ]


def test_every_text_is_escaped() -> None:
    found = parsed(hostile_page())
    assert "script" not in found.tags
    # Title, heading, lead, caption, table title, header cell, cell and note.
    assert found.text.count(HOSTILE) == 8
    assert ("alt", HOSTILE) in found.attributes


def test_page_is_self_contained() -> None:
    addresses = [value for name, value in parsed(hostile_page()).attributes if name in ("src", "href")]
    assert addresses
    assert all(value is not None and value.startswith("data:") for value in addresses)


def test_every_text_of_every_part_is_escaped() -> None:
    found = parsed(page("t", "l", hostile_parts()))
    assert "script" not in found.tags
    # Title, two cells and note of the table; title of the plot; title, note, heading and caption of the gallery.
    assert found.text.count(HOSTILE) == 9
    assert found.attributes.count(("alt", HOSTILE)) == 2


def test_the_policy_lets_nothing_in_but_the_page_s_own_style_and_pictures() -> None:
    html = page("t", "l", hostile_parts())
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not [name for name, _ in parsed(html).attributes if name == "style" or name.startswith("on")]


@pytest.mark.parametrize(("size", "width"), [((28, 28), 140), ((86, 28), 430), ((300, 200), 300), ((1, 1), 140)])
def test_small_pictures_are_shown_by_whole_pixels(size: tuple[int, int], width: int) -> None:
    found = parsed(page("t", "l", [Gallery("g", [("a", False, [Figure("c", png(*size))])])]))
    assert ("width", str(width)) in found.attributes
    assert ("class", "crisp") in found.attributes


def test_a_group_of_pictures_is_open_or_closed() -> None:
    found = parsed(page("t", "l", [Gallery("g", [("a", True, []), ("b", False, [])])]))
    assert found.tags.count("details") == 2
    assert [name for name, _ in found.attributes].count("open") == 1


def test_a_table_without_a_header_has_one_at_the_side() -> None:
    html = page("t", "l", [Table("facts", [], [["model", "<td>"], ["version", "3"]], words=True)])
    assert re.findall(r"<(t[hd])[^>]*>([^<]*)", html) == [
        ("th", "model"),
        ("td", "&lt;td&gt;"),
        ("th", "version"),
        ("td", "3"),
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0.0 kB"), (5_312, "5.3 kB"), (26_000, "26 kB"), (1_234_567, "1.23 MB"), (2_500_000_000, "2.50 GB")],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert size_text(count) == text


def test_metrics_for_people() -> None:
    assert [metric_text("accuracy", 0.9351), metric_text("mae", 0.39111), metric_text("mae", None)] == [
        "93.51%",
        "0.391",
        "–",
    ]


@pytest.mark.parametrize(
    ("text", "longest", "expected"),
    [("abc", 3, "abc"), ("abcdefgh", 5, "ab…gh"), ("abcdefgh", 4, "ab…h"), (" a\n b ", 9, "a b")],
)
def test_long_texts_lose_their_middle(text: str, longest: int, expected: str) -> None:
    assert short(text, longest) == expected


def test_images_are_embedded_as_they_are() -> None:
    content = bytes(range(256))
    found = re.search(r"data:image/png;base64,([^\"]+)", page("t", "l", [], [("caption", content)]))
    assert found is not None
    assert base64.b64decode(found[1]) == content


def test_table_keeps_the_order_of_its_cells() -> None:
    html = page("t", "l", [Table("sizes", ["name", "bytes"], [["a", "1"], ["b", "2"]])])
    assert re.findall(r"<t[hd]>([^<]*)", html) == ["name", "bytes", "a", "1", "b", "2"]
    assert 'class="note"' not in html


@pytest.mark.parametrize(
    "rows",
    [
        [[Bars("latency, ms", [("a", 1.0, "1.0"), ("b", 2.0, "2.0")])]],
        [[Bars("one", [("a", 1.0, "1")]), Bars("two", [("a", 3.0, "3")])], [Bars("alone", [("c", 0.0, "0")])]],
        [[Bars("$x_1$ <tag>", [("$a_b$ & c", 0.5, "50 %")])]],
    ],
)
def test_bar_charts_are_png_files_with_something_on_them(rows: list[list[Bars]]) -> None:
    content = bar_charts("title", rows)
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 50
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_longer_bar_is_drawn_for_the_larger_value() -> None:
    content = bar_charts("", [[Bars("", [("", 1.0, ""), (" ", 4.0, "")])]])
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("RGB"))
    widths = [
        int((pixels == colour).all(axis=-1).sum(axis=1).max()) for colour in ((0x3B, 0x6F, 0xB6), (0x2A, 0x9D, 0x8F))
    ]
    assert widths[0] > 0
    assert widths[1] / widths[0] == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize(
    ("name", "value", "before", "text"),
    [
        ("accuracy", 0.93, 0.94, "-1.00"),
        ("accuracy", 0.94, 0.94, "0"),
        ("accuracy", 0.940001, 0.94, "0"),
        ("mae", 0.25, 1e-5, "+0.25"),
        ("mae", None, 1.0, "–"),
        ("mae", 1.0, None, "–"),
    ],
)
def test_what_became_of_a_metric(name: str, value: float | None, before: float | None, text: str) -> None:
    assert change_text(name, value, before) == text
