"""Tokens of captions, counted by the wired CLIP's own tokenizers."""

from __future__ import annotations

from collections.abc import Callable

import comfy.sd

T5_TOKENS = 512
"""What FLUX.1 was trained with at most (black-forest-labs/flux, `load_t5`). ComfyUI encodes longer texts all the same.
"""
CLIP_TOKENS = 75
"""What CLIP takes at once, 77, without its start and its end."""
CLIP_PARTS = {"l", "g", "h"}


def counter(clip: comfy.sd.CLIP) -> tuple[Callable[[str], int], int]:
    """How many tokens a caption has, and how many the model is made for.

    Counted as a person would: without start, end and padding. Of several tokenizers, the one that needs most counts."""
    parts = set(clip.tokenize(""))
    around = _count(clip, "")

    def count(caption: str) -> int:
        found = _count(clip, caption)
        return max(found[part] - around[part] for part in found)

    return count, CLIP_TOKENS if parts <= CLIP_PARTS else T5_TOKENS


def _count(clip: comfy.sd.CLIP, text: str) -> dict[str, int]:
    """Tokens of each part. Word 0 is what the tokenizer adds; a template around the text has words of its own."""
    chunks = clip.tokenize(text, return_word_ids=True)
    return {part: sum(word != 0 for chunk in chunks[part] for *_, word in chunk) for part in chunks}
