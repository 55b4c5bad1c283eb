"""Counts the tokens of captions with the wired CLIP's own tokenizers."""

from __future__ import annotations

from collections.abc import Callable

import comfy.sd

from .families import FAMILIES

CLIP_TOKENS = 75
"""The tokens that CLIP takes at once: 77 without its start and its end."""
CLIP_PARTS = {"l", "g", "h"}


def counter(clip: comfy.sd.CLIP) -> tuple[Callable[[str], int], int]:
    """Returns a function that counts the tokens of a caption, and the number of tokens that the model is made for.

    Tokens are counted as a person would: without start, end and padding. Of several tokenizers, the one that needs the
    most tokens counts."""
    parts = set(clip.tokenize(""))
    around = _count(clip, "")

    def count(caption: str) -> int:
        found = _count(clip, caption)
        return max(found[part] - around[part] for part in found)

    if parts <= CLIP_PARTS:
        return count, CLIP_TOKENS
    made_for = [family for family in FAMILIES if family.reads(clip)] or FAMILIES
    return count, max(family.caption_tokens for family in made_for)


def _count(clip: comfy.sd.CLIP, text: str) -> dict[str, int]:
    """Returns the number of tokens for each tokenizer of the CLIP. Word 0 is what the tokenizer adds; a template around
    the text has words of its own."""
    chunks = clip.tokenize(text, return_word_ids=True)
    return {part: sum(word != 0 for chunk in chunks[part] for *_, word in chunk) for part in chunks}
