"""Knows what text a file can hold, and how numbers are written."""

from __future__ import annotations

import re

UNWRITABLE = re.compile("[\0\ud800-\udfff]")
"""Zeros, by which files that are no text are known, and halves of characters, which no encoding takes. JSON, a browser
or a name that is not UTF-8 can bring them along."""


def is_unicode(text: str) -> bool:
    """Tells whether a text can be written to a file, or as a file's name."""
    return not UNWRITABLE.search(text)


def text_problem(what: str, text: str) -> str:
    """Returns a sentence if a text cannot be written to a file, else nothing. `what` says what the text is."""
    found = UNWRITABLE.search(text)
    if not found:
        return ""
    part = "a zero character" if found[0] == "\0" else "half of a character"
    around = text[max(0, found.start() - 20):found.end() + 20]
    return f"{what} has {part} in it, which no file can hold: {around!r}. Delete it, and type the character again."


def check_text(what: str, text: str) -> None:
    """Raises ValueError with the sentence of `text_problem` if there is one."""
    if problem := text_problem(what, text):
        raise ValueError(problem)


def amount(size: float) -> str:
    """Returns so many bytes in words, such as '29 MB' or '11.1 GB'."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    """Returns so much time in words, such as '50 ms', '1.4 s' or '12 s'."""
    number, unit = (1000 * seconds, "ms") if seconds < 0.1 else (seconds, "s")
    return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun in the singular or the plural, such as '1 image' or '2 images'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
