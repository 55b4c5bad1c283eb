r"""Takes `miku (vocaloid)` and `miku \(vocaloid\)` for one text. To ComfyUI, bare brackets are weights."""

from __future__ import annotations

import re


def escape(text: str) -> str:
    """Returns a text with a backslash before each bracket that has none, so that it has no weights."""
    return re.sub(r"(?<!\\)[()]", r"\\\g<0>", text)


def bare(text: str) -> str:
    """Returns a text without the backslashes before its brackets."""
    return re.sub(r"\\([()])", r"\1", text)


def letter(character: str) -> str:
    """Returns a regular expression that finds a character; a bracket, with or without a backslash."""
    return (r"\\?" if character in "()" else "") + re.escape(character)


def phrase(text: str) -> str:
    """Returns a regular expression that finds a word or a phrase where it stands as whole words."""
    return rf"(?<![\w\\]){''.join(map(letter, bare(text)))}(?!\w)"
