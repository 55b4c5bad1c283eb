"""Turns texts into tokens with the wired CLIP's own tokenizers, and counts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.sd

from ..data.captions.files import one_line
from ..model.family import FAR_TOO_LONG
from .families import FAMILIES

CLIP_TOKENS = 75
"""The tokens that CLIP takes at once: 77 without its start and its end."""
CLIP_PARTS = {"l", "g", "h"}
COUNTED = 10_000
"""The most characters of a text that are counted. ComfyUI's tokenizer takes time that grows with the square of their
number (0.30): a megabyte of Chinese takes it minutes."""


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
    most tokens counts. What a caption has behind its first COUNTED characters is taken to be like them."""
    parts = set(clip.tokenize(""))
    around = _count(clip, "")

    def count(caption: str) -> int:
        text = caption if len(caption) <= COUNTED else one_line(caption)
        found = _count(clip, text[:COUNTED])
        return max(found[part] - around[part] for part in found) * max(len(text), COUNTED) // COUNTED

    if parts <= CLIP_PARTS:
        return count, CLIP_TOKENS
    made_for = [family for family in FAMILIES if family.reads(clip)] or FAMILIES
    return count, max(family.caption_tokens for family in made_for)


def check_length(clip: comfy.sd.CLIP, text: str) -> None:
    """Raises ValueError for a text that is far too long to be encoded."""
    count, made_for = counter(clip)
    if (found := count(text)) > FAR_TOO_LONG * made_for:
        raise ValueError(f"A text of about {found} tokens is far too long: “{text[:80]}…”. The model is made for "
                         f"{made_for}, and at most {FAR_TOO_LONG * made_for} are encoded. Shorten it.")


def _count(clip: comfy.sd.CLIP, text: str) -> dict[str, int]:
    """Returns the number of tokens for each tokenizer of the CLIP. Word 0 is what the tokenizer adds; a template around
    the text has words of its own."""
    chunks = tokenize(clip, text, return_word_ids=True)
    return {part: sum(word != 0 for chunk in chunks[part] for *_, word in chunk) for part in chunks}
