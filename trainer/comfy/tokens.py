"""Turns texts into tokens with the wired CLIP's own tokenizers, and counts them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import comfy.sd

from ..model.family import FAR_TOO_LONG
from .families import FAMILIES

CLIP_TOKENS = 75
"""The tokens that CLIP takes at once: 77 without its start and its end."""
CLIP_PARTS = {"l", "g", "h"}
COUNTED = 10_000
"""The most characters that are counted at once. ComfyUI's tokenizer takes time that grows with the square of their
number (0.30): a megabyte of Chinese takes it minutes."""
PIECE = re.compile(rf"\S(?:.{{0,{COUNTED - 2}}}\S)?(?!\S)|\S{{{COUNTED}}}", re.DOTALL)
"""As many whole words as are counted at once, or a part of a longer word."""


def tokenize(clip: comfy.sd.CLIP, text: str, **options: Any) -> dict[str, Any]:
    """Returns the tokens of a text for each tokenizer of the CLIP, as CLIPTextEncode gets them. Raises ValueError for
    more brackets inside each other than ComfyUI can read."""
    try:
        return clip.tokenize(text, **options)
    except RecursionError as err:
        raise ValueError(f"A text has too many brackets inside each other to be read: “{text[:80]}…”. Take them out, "
                         "or write \\( and \\) for brackets that are no weights.") from err


def counter(clip: comfy.sd.CLIP) -> tuple[Callable[[str], int], int]:
    """Returns a function that counts the tokens of a caption, and the number of tokens that the model is made for.

    Tokens are counted as a person would: without start, end and padding. Of several tokenizers, the one that needs the
    most tokens counts. Of a text that is far too long only the beginning is counted, until that is known."""
    around = _count(clip, "")
    made_for = _made_for(clip)

    def count(caption: str) -> int:
        total = dict.fromkeys(around, 0)
        for piece in PIECE.finditer(caption):
            found = _count(clip, piece[0])
            total = {part: total[part] + found[part] - around[part] for part in total}
            if max(total.values()) > FAR_TOO_LONG * made_for:
                break
        return max(total.values())

    return count, made_for


def _made_for(clip: comfy.sd.CLIP) -> int:
    if {*clip.tokenize("")} <= CLIP_PARTS:
        return CLIP_TOKENS
    made_for = [family for family in FAMILIES if family.reads(clip)] or FAMILIES
    return max(family.caption_tokens for family in made_for)


def check_length(clip: comfy.sd.CLIP, text: str) -> None:
    """Raises ValueError for a text that is far too long to be encoded."""
    count, made_for = counter(clip)
    if (found := count(text)) > FAR_TOO_LONG * made_for:
        raise ValueError(f"A text of at least {found} tokens is far too long: “{text[:80]}…”. The model is made for "
                         f"{made_for}, and at most {FAR_TOO_LONG * made_for} are encoded. Shorten it.")


def _count(clip: comfy.sd.CLIP, text: str) -> dict[str, int]:
    """Returns the number of tokens for each tokenizer of the CLIP. Word 0 is what the tokenizer adds; a template around
    the text has words of its own."""
    chunks = tokenize(clip, text, return_word_ids=True)
    return {part: sum(word != 0 for chunk in chunks[part] for *_, word in chunk) for part in chunks}
