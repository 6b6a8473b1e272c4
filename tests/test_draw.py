"""Report pieces: pages that no text can break out of, and plots that are really PNG files."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from servable.draw import Bars, Table, bar_charts, page

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
