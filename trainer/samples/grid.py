"""Makes one picture of a table of pictures, with titles at the left and above."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from ..data.pictures.lettering import Font, font_for, wrapped

Cells = list[list[Image.Image | None]]
"""Rows of pictures of any size. None: there is no picture."""
PAGE, TEXT, BLANK, FAINT = "#ffffff", "#222222", "#f1f1f1", "#767676"
MISSING = "no picture"


def compose(cells: Cells, rows: Sequence[str], columns: Sequence[str], labels: bool) -> Image.Image:
    """Returns the table as a picture, with each cell pixel for pixel. Columns are as wide as the widest picture. A row
    is as tall as its tallest picture; a row without pictures is as tall as the tallest row. `rows` and `columns` are
    the titles, which are left out without `labels`.

    Raises ValueError if there is no picture at all."""
    pictures = [picture for row in cells for picture in row if picture]
    if not pictures:
        raise ValueError("There is no picture to put into the grid.")
    width, tallest = max(p.width for p in pictures), max(p.height for p in pictures)
    heights = [max((p.height for p in row if p), default=tallest) for row in cells]
    style = _Style.of(min(width, *heights), "".join([*rows, *columns]))
    left = [style.wrapped(title, round(1.25 * width), height) for title, height in zip(rows, heights, strict=True)]
    above = [style.wrapped(title, width, tallest) for title in columns]
    x0 = y0 = style.margin
    if labels:
        x0 += max(map(style.width_of, left)) + 2 * style.gap
        y0 += max(map(style.height_of, above)) + style.gap
    page = Image.new("RGB", (x0 + len(columns) * (width + style.gap) - style.gap + style.margin,
                             y0 + sum(heights) + (len(rows) - 1) * style.gap + style.margin), PAGE)
    xs, y = [x0 + column * (width + style.gap) for column in range(len(columns))], y0
    for x, title in zip(xs, above, strict=True):
        if labels:
            style.write(page, (x + width / 2, (style.margin + y0 - style.gap) / 2), title, "m")
    for title, row, height in zip(left, cells, heights, strict=True):
        if labels:
            style.write(page, (style.margin, y + height / 2), title, "l")
        for x, picture in zip(xs, row, strict=True):
            _place(page, picture, (x, y, width, height), style)
        y += height + style.gap
    return page


def _place(page: Image.Image, picture: Image.Image | None, cell: tuple[int, int, int, int], style: _Style) -> None:
    """Puts a picture into the middle of its cell (x, y, width, height), or says that there is none."""
    x, y, width, height = cell
    if picture:
        page.paste(picture, (x + (width - picture.width) // 2, y + (height - picture.height) // 2))
    else:
        page.paste(BLANK, (x, y, x + width, y + height))
        style.write(page, (x + width / 2, y + height / 2), style.wrapped(MISSING, width, height), "m", FAINT)


class _Style(NamedTuple):
    """Holds the font and sizes in pixels. They grow with the pictures, so that a grid of large pictures is readable
    when it is shown small."""

    font: Font
    line: int
    """The height of a line of text."""
    gap: int
    """The space between pictures."""
    margin: int

    @classmethod
    def of(cls, edge: int, text: str) -> _Style:
        """Returns the style for cells whose shorter side is `edge` pixels. `text` has all letters of the titles."""
        size = max(13, edge // 12)
        gap = max(4, size // 4)
        return cls(font_for(text, size), round(1.25 * size), gap, 2 * gap)

    def wrapped(self, text: str, width: int, height: int) -> str:
        """Breaks text into lines that fit into a box. Text that does not fit is cut, and ends in …"""
        return "\n".join(wrapped(text, self.font, width, max(1, height // self.line)))

    def width_of(self, text: str) -> int:
        """Returns the width of the widest line, in pixels."""
        return math.ceil(max(self.font.getlength(line) for line in text.split("\n")))

    def height_of(self, text: str) -> int:
        """Returns the height of all lines, in pixels."""
        return self.line * (text.count("\n") + 1)

    def write(self, page: Image.Image, at: tuple[float, float], text: str, align: str, color: str = TEXT) -> None:
        """Writes lines of text with their middle ("m") or left edge ("l") at a point, half of them above it."""
        (x, y), lines, pen = at, text.split("\n"), ImageDraw.Draw(page)
        for number, line in enumerate(lines):  # pillow's own spacing of lines differs between its versions
            pen.text((x, y + (number - (len(lines) - 1) / 2) * self.line), line, color, self.font, f"{align}m")
