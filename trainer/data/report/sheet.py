"""Draws a dataset: the contact sheet, and the report as a picture."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from ..item import Item
from ..pictures import images
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
NO_GLYPH = "\uffff"
"""A character that no font has. It looks like every character that a font cannot show."""
SIMILAR = str.maketrans({"×": "x", "–": "-", "—": "-", "“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "ß": "ss",
                         "æ": "ae", "ø": "o", "đ": "d", "ł": "l"})
"""What is written in place of characters that pillow's own font lacks."""
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(items: Sequence[Item], edge: int = 128, most: int = 48, captions: bool = False) -> Tensor:
    """Returns the first pictures side by side, as they will be cut, on request with their captions: (h, w, 3) in 0…1.

    An item that is no picture (latents from other nodes) becomes a grey tile with its name."""
    shown = list({item.path: item for item in items}.values())[:most]
    columns = min(len(shown), max(4, math.ceil(math.sqrt(len(shown) * 1.5))))
    height = edge + (LINES * (CAPTION_SIZE + 3) + 6 if captions else 0)
    sheet = Image.new("RGB", (columns * edge, -(-len(shown) // columns) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(CAPTION_SIZE)
    for place, item in enumerate(shown):
        left, top = place % columns * edge, place // columns * height
        sheet.paste(_tile(item, edge - 4, font), (left + 2, top + 2))
        if captions:
            lines = wrapped(item.caption, font, edge - 8, LINES)
            draw.multiline_text((left + 4, top + edge), "\n".join(lines), INK, font, spacing=3)
    return to_tensor(sheet)


def report_picture(report: Report) -> Tensor:
    """Returns the report as a picture (h, w, 3) in 0…1: the training sizes as bars, and what to look at."""
    title, text, small = (ImageFont.load_default(size) for size in (26, 18, 15))
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
    pen.write(shortened(report.summary[0].partition(" in ")[0] + f" in {report.folder.name}", 60), title, INK, 38)
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
        self.draw.text((MARGIN + indent, self.y), _shown(line, font), color, font)
        self.y += height


def _draw_bars(pen: _Pen, report: Report, bars: int, font: Font) -> None:
    """Draws a bar for each size. If there are more sizes than `bars`, the last bar stands for all the others."""
    rows = [(f"{w}×{h}", count) for (w, h), count in report.buckets]
    if len(rows) > bars:
        rows[bars - 1:] = [(f"{len(rows) - bars + 1} others", sum(count for _, count in rows[bars - 1:]))]
    most = max(count for _, count in rows)
    for name, count in rows:
        length = round((WIDTH - 2 * MARGIN - 180) * count / most)
        pen.draw.text((MARGIN, pen.y + 2), _shown(name, font), INK, font)
        pen.draw.rectangle((MARGIN + 110, pen.y + 2, MARGIN + 110 + max(2, length), pen.y + BAR - 6), BLUE)
        pen.draw.text((MARGIN + 120 + length, pen.y + 2), str(count), PALE, font)
        pen.y += BAR


def _where(files: Sequence[str]) -> str:
    named = ", ".join(shortened(name, 40) for name in files[:3])
    return f"{named}{f' and {len(files) - 3} more' if len(files) > 3 else ''}. " if files else ""


def wrapped(text: str, font: Font, width: int, lines: int) -> list[str]:
    """Returns a text in at most `lines` lines of `width` pixels, with an ellipsis at the end if it is longer.

    The font that comes with pillow knows little more than ASCII. Other Latin letters are shown without their accents,
    and each other character as a box, so that one sees that there is something, and where."""
    found, rest = [], _shown(shortened(text, 400), font).split(" ")
    while rest and len(found) < lines:
        line = rest.pop(0)
        while rest and font.getlength(f"{line} {rest[0]}") <= width:
            line += " " + rest.pop(0)
        fitting = _fitting(line, font, width)
        if fitting < len(line):  # one long word, or a language without spaces
            rest.insert(0, line[fitting:])
        found.append(line[:fitting])
    if rest:
        last = found[-1]
        found[-1] = last[:_fitting(last, font, width - font.getlength("…"))].rstrip(" ,.") + "…"
    return found


def _fitting(line: str, font: Font, width: float) -> int:
    """Returns how many characters of a line fit, at least one."""
    return next((n for n in range(len(line), 1, -1) if font.getlength(line[:n]) <= width), 1)


def _shown(text: str, font: Font) -> str:
    """Returns a text in which characters that the font lacks are replaced by similar ones or a box. Marks that only
    change the character before them are left out."""
    lacks = _lacking(font)
    found = []
    for character in text:
        similar = unicodedata.normalize("NFKD", character).translate(SIMILAR) if lacks(character) else character
        marks = {c for c in similar if unicodedata.category(c) in ("Mn", "Cf")}
        found += [NO_GLYPH if lacks(c) else c for c in similar if c not in marks]
    return "".join(found)


def _lacking(font: Font) -> Callable[[str], bool]:
    nothing = _drawn(NO_GLYPH, font)
    known: dict[str, bool] = {}

    def lacks(character: str) -> bool:
        if character not in known:
            known[character] = not character.isspace() and _drawn(character, font) == nothing
        return known[character]

    return lacks


def _drawn(character: str, font: Font) -> bytes:
    """Returns the pixels of a character as the font draws it."""
    page = Image.new("L", (40, 40))
    ImageDraw.Draw(page).text((0, 0), character, 255, font)
    return page.tobytes()


def _tile(item: Item, edge: int, font: Font) -> Image.Image:
    if item.path.suffix.lower() not in images.EXTENSIONS:
        tile = Image.new("RGB", (edge, edge), "#d1d5db")
        lines = wrapped(item.path.name, font, edge - 8, 4)
        ImageDraw.Draw(tile).multiline_text((4, edge // 2 - 8 * len(lines)), "\n".join(lines), INK, font)
        return tile
    picture = to_image(images.load(item.path, item.bucket))
    return ImageOps.pad(picture, (edge, edge), color="white")
