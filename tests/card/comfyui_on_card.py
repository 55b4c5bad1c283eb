"""Makes ComfyUI believe in the card: its own model management then loads models, text encoders and the VAE to it, and
keeps them on the CPU otherwise. Tried with ComfyUI 0.30.0, 0.27.0 and 0.20.1.

ComfyUI asks its kinds of GPU by name for their memory, so what it asks is answered here for one more. Nothing else of
it is replaced: how much of a model is loaded, what is cast on the way, and what has to leave is ComfyUI's own."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import softcard as card
import torch

RESERVED = 32 * 1024**2
"""The bytes that ComfyUI keeps free beside weights. On a real card these are 0.8 GB and more; here they suffice for the
largest weight of all when it is streamed, the vocabulary of CLIP-L with 25 MB."""


def believe() -> None:
    """Makes ComfyUI use the card from now on. Models that are loaded already stay where they are."""
    mm.get_free_memory = _or_theirs(mm.get_free_memory, lambda: card.limit() - card.used())
    mm.get_total_memory = _or_theirs(mm.get_total_memory, card.limit)
    mm.get_torch_device = lambda: card.DEVICE
    mm.vram_state = mm.VRAMState.NORMAL_VRAM
    mm.minimum_inference_memory = lambda: RESERVED
    mm.extra_reserved_memory = lambda: 0
    # Text encoders go to a device that computes in half precision; the transformer is to compute as it does on the CPU.
    mm.should_use_fp16 = lambda *_, prioritize_performance=True, **__: not prioritize_performance
    mm.should_use_bf16 = lambda *_, **__: False


def _or_theirs(theirs: Any, answer: Any) -> Any:
    """Returns a function that answers for the card, and asks ComfyUI's own for other devices."""
    def memory(dev: torch.device | None = None, *both: bool, **of_torch_too: bool) -> Any:
        if dev is not None and dev != card.DEVICE:
            return theirs(dev, *both, **of_torch_too)
        return (answer(), answer()) if any((*both, *of_torch_too.values())) else answer()

    return memory
