"""Draws how a training uses the memory of a graphics card, as one bar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from ..data.pictures.lettering import font_for
from ..disk.text import amount

WIDTH, HEIGHT, MARGIN, BAR = 768, 128, 16, 40
PAGE, TEXT, EMPTY, OVER = "#ffffff", "#222222", "#e6e6e6", "#b91c1c"
COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#8172b3")


class Part(NamedTuple):
    """A part of the bar."""

    name: str
    size: int


def bar(title: str, parts: Sequence[Part], whole: int) -> Image.Image:
    """Returns a picture (WIDTH × HEIGHT) of the parts of a whole. Where they are more than that, a line shows where it
    ends."""
    page = Image.new("RGB", (WIDTH, HEIGHT), PAGE)
    pen, font, small = ImageDraw.Draw(page), font_for(title, 18), font_for(title, 14)
    pen.text((MARGIN, MARGIN), title, TEXT, font)
    top, scale = MARGIN + 30, (WIDTH - 2 * MARGIN) / max(whole, sum(part.size for part in parts), 1)
    pen.rectangle((MARGIN, top, MARGIN + scale * whole, top + BAR), EMPTY)
    x, label = float(MARGIN), float(MARGIN)
    for part, colour in zip(parts, COLOURS, strict=False):
        pen.rectangle((x, top, x + scale * part.size, top + BAR), colour)
        x += scale * part.size
        text = f"{part.name} {amount(part.size)}"
        pen.rectangle((label, top + BAR + 12, label + 12, top + BAR + 24), colour)
        pen.text((label + 18, top + BAR + 9), text, TEXT, small)
        label += 18 + small.getlength(text) + 20
    if sum(part.size for part in parts) > whole:
        pen.line([(MARGIN + scale * whole, top - 4), (MARGIN + scale * whole, top + BAR + 4)], OVER, 3)
    return page
