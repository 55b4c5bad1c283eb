"""Chooses fonts for text in pictures, and breaks the text into lines. Sizes and widths are in pixels."""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Iterable

from PIL import Image, ImageDraw, ImageFont

SYSTEM_FONTS = ("arial.ttf", "DejaVuSans.ttf", "msyh.ttc", "YuGothM.ttc", "malgun.ttf", "Arial Unicode.ttf",
                "NotoSansCJK-Regular.ttc")
"""Fonts of the system for letters that pillow's own font lacks. That font has hardly more than English."""
NO_GLYPH = "\uffff"
"""A character that no font has. It looks like every character that a font cannot show."""
SIMILAR = str.maketrans({"×": "x", "–": "-", "—": "-", "“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "ß": "ss",
                         "æ": "ae", "ø": "o", "đ": "d", "ł": "l"})
"""What is written in place of characters that a font lacks."""
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font_for(text: str, size: int) -> Font:
    """Returns pillow's own font or, if it lacks letters of the text for which there are no similar ones, whichever of
    it and the system's fonts lacks the fewest."""
    own, needed = ImageFont.load_default(size), text.translate(SIMILAR)
    if not _lacking(own, needed):
        return own
    others = [found for name in SYSTEM_FONTS if (found := _system_font(name, size))]
    return min([own, *others], key=lambda font: len(_lacking(font, needed)))


def readable(text: str, font: Font) -> str:
    """Returns a text in which each character that the font lacks is replaced by similar ones, such as its letter
    without the accent, or by a box, so that one sees that there is something, and where. Marks that only change the
    character before them are left out."""
    lacks = _lacking(font, text)
    found = []
    for character in text:
        similar = unicodedata.normalize("NFKD", character).translate(SIMILAR) if character in lacks else character
        letters = [c for c in similar if unicodedata.category(c) not in ("Mn", "Cf")]
        still = _lacking(font, letters) if character in lacks else lacks
        found += [NO_GLYPH if c in still else c for c in letters]
    return "".join(found)


def wrapped(text: str, font: Font, width: float, lines: int) -> list[str]:
    """Returns a text in at most `lines` lines that fit into `width`, with an ellipsis at the end if it is longer."""
    found, rest = [], readable(" ".join(text.split()), font).split(" ")
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
    fits = 1
    while fits < len(line) and font.getlength(line[:fits + 1]) <= width:
        fits += 1
    return fits


def _lacking(font: Font, text: Iterable[str]) -> set[str]:
    """Returns the letters of a text that the font draws as it draws one that no font has."""
    box = _drawn(font, NO_GLYPH)
    letters = {letter for letter in text if letter.isprintable() and not letter.isspace()}
    return {letter for letter in letters if _drawn(font, letter) == box}


def _drawn(font: Font, letter: str) -> bytes:
    """Returns the pixels of a letter as the font draws it."""
    right, bottom = font.getbbox(letter)[2:]
    page = Image.new("L", (math.ceil(right) + 1, math.ceil(bottom) + 1))
    ImageDraw.Draw(page).text((0, 0), letter, 255, font)
    return page.tobytes()


@functools.cache
def _system_font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None
