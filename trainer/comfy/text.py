"""Encodes captions with the wired CLIP.

Shapes: L tokens, D width of the text encoder.
"""

from __future__ import annotations

from typing import Any

import comfy.sd
import torch

from ..model.host import Text
from ..model.transfer import moved
from .interrupts import translated
from .tokens import check_length, tokenize


def encode_text(clip: comfy.sd.CLIP, caption: str) -> Text:
    """Returns what CLIPTextEncode gives: `cond` (1, L, D), `pooled_output` and whatever else the encoder adds, on the
    CPU. Raises ValueError for a text that is far too long, because memory grows with the square of L."""
    check_length(clip, caption)
    with torch.inference_mode(), translated():
        [cond, extra], *_ = clip.encode_from_tokens_scheduled(tokenize(clip, caption))
    found = {"cond": cond, **extra}
    return {name: value.clone().cpu() if torch.is_tensor(value) else value for name, value in found.items()}


def by_length(texts: list[Text]) -> list[list[int]]:
    """Groups the indices of texts by their number of tokens."""
    groups: dict[int, list[int]] = {}
    for index, text in enumerate(texts):
        groups.setdefault(text["cond"].shape[1], []).append(index)
    return list(groups.values())


def side_by_side(texts: list[Text], parts: tuple[str, ...], device: torch.device) -> dict[str, Any]:
    """Joins those parts of texts of equal length into one batch, under the names that `extra_conds` knows."""
    return {"cross_attn" if name == "cond" else name: moved(torch.cat([t[name] for t in texts]), device)
            for name in parts}
