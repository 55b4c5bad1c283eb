"""Draws a dataset: the contact sheet, and the report as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from ...disk.text import counted
from ..item import Item
from ..naming import name_some
from ..pictures import images
from ..pictures.lettering import Font, font_for, readable, wrapped
from ..pictures.pixels import to_image, to_tensor
from .caption_findings import shortened
from .report import Report

LINES = 3
"""The most lines of a caption under its picture."""
CAPTION_SIZE = 13
"""The size of a caption's letters in pixels."""
WIDTH = 960
"""The width of the report's picture in pixels."""
MARGIN = 32
BAR = 26
"""The height of a bucket's bar with the space around it, in pixels."""
INK, PALE, BLUE, AMBER = "#1f2328", "#6b7280", "#3b82f6", "#b45309"


def contact_sheet(items: Sequence[Item], edge: int = 128, most: int = 48, captions: bool = False) -> Tensor:
    """Returns the first pictures side by side, as they will be cut, on request with their captions: (h, w, 3) in 0…1.

    An item that is no picture (latents from other nodes) becomes a grey tile with its name."""
    shown = list({item.path: item for item in items}.values())[:most]
    columns = min(len(shown), max(4, math.ceil(math.sqrt(len(shown) * 1.5))))
    height = edge + (LINES * (CAPTION_SIZE + 3) + 6 if captions else 0)
    sheet = Image.new("RGB", (columns * edge, -(-len(shown) // columns) * height), "white")
    written = "".join(item.path.name + item.caption for item in shown)
    draw, font = ImageDraw.Draw(sheet), font_for(written, CAPTION_SIZE)
    for place, item in enumerate(shown):
        left, top = place % columns * edge, place // columns * height
        sheet.paste(_tile(item, edge - 4, font), (left + 2, top + 2))
        if captions:
            lines = wrapped(item.caption, font, edge - 8, LINES)
            draw.multiline_text((left + 4, top + edge), "\n".join(lines), INK, font, spacing=3)
    return to_tensor(sheet)


def report_picture(report: Report) -> Tensor:
    """Returns the report as a picture (h, w, 3) in 0…1: the training sizes as bars, and what to look at."""
    written = "".join([report.folder.name, report.text])
    title, text, small = (font_for(written, size) for size in (26, 18, 15))
    inner = WIDTH - 2 * MARGIN
    findings = [(wrapped(f"{finding.what[0].upper()}{finding.what[1:]}.", text, inner - 24, 3),
                 wrapped(_where(finding.files) + finding.advice, small, inner - 24, 4)) for finding in report.findings]
    bars = min(len(report.buckets), 16)
    notes = [*report.counts, *(f"Skipped: {s}" for s in report.skipped[:3])]
    note_lines = [line for note in notes for line in wrapped(note, small, inner, 2)]
    height = (2 * MARGIN + 76 + bars * BAR + 20 + 22 * len(note_lines) + 36
              + sum(14 + 24 * len(what) + 20 * len(advice) for what, advice in findings))
    page = Image.new("RGB", (WIDTH, height), "white")
    pen = _Pen(ImageDraw.Draw(page), MARGIN)
    [heading] = wrapped(report.summary[0].partition(" in ")[0] + f" in {report.folder.name}", title, inner, 1)
    pen.write(heading, title, INK, 38)
    (w1, h1), (w2, h2) = report.sizes
    pen.write(f"From {w1}×{h1} to {w2}×{h2} pixels, trained at:", text, PALE, 38)
    _draw_bars(pen, report, bars, small)
    pen.y += 20
    for line in note_lines:
        pen.write(line, small, PALE, 22)
    pen.write("To look at" if findings else "Nothing to mend", text, INK, 36)
    for what, advice in findings:
        pen.draw.ellipse((MARGIN, pen.y + 6, MARGIN + 10, pen.y + 16), AMBER)
        for line in what:
            pen.write(line, text, INK, 24, 24)
        for line in advice:
            pen.write(line, small, PALE, 20, 24)
        pen.y += 14
    return to_tensor(page)


class _Pen:
    """Writes lines of text below each other."""

    def __init__(self, draw: ImageDraw.ImageDraw, y: int) -> None:
        self.draw, self.y = draw, y

    def write(self, line: str, font: Font, color: str, height: int, indent: int = 0) -> None:
        self.draw.text((MARGIN + indent, self.y), readable(line, font), color, font)
        self.y += height


def _draw_bars(pen: _Pen, report: Report, bars: int, font: Font) -> None:
    """Draws a bar for each size. If there are more sizes than `bars`, the last bar stands for all the others."""
    rows = [(f"{w}×{h}", count) for (w, h), count in report.buckets]
    if len(rows) > bars:
        rows[bars - 1:] = [(counted(len(rows) - bars + 1, "other"), sum(count for _, count in rows[bars - 1:]))]
    most = max(count for _, count in rows)
    for name, count in rows:
        length = round((WIDTH - 2 * MARGIN - 180) * count / most)
        pen.draw.text((MARGIN, pen.y + 2), readable(name, font), INK, font)
        pen.draw.rectangle((MARGIN + 110, pen.y + 2, MARGIN + 110 + max(2, length), pen.y + BAR - 6), BLUE)
        pen.draw.text((MARGIN + 120 + length, pen.y + 2), str(count), PALE, font)
        pen.y += BAR


def _where(files: Sequence[str]) -> str:
    return name_some([shortened(name, 40) for name in files], 3) + ". " if files else ""


def _tile(item: Item, edge: int, font: Font) -> Image.Image:
    if item.latents:
        tile = Image.new("RGB", (edge, edge), "#d1d5db")
        lines = wrapped(item.path.name, font, edge - 8, 4)
        ImageDraw.Draw(tile).multiline_text((4, edge // 2 - 8 * len(lines)), "\n".join(lines), INK, font)
        return tile
    picture = to_image(images.load(item.path, item.bucket))
    return ImageOps.pad(picture, (edge, edge), color="white")
