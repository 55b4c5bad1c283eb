"""Attention with rotary positions (Su et al. 2021, arXiv:2104.09864), differentiable, for one forward of a FLUX.1.

ComfyUI rotates queries and keys with a kernel that has no backward, unless a switch of the whole process selects a slow
one. So the positions are taken away before the blocks see them, through ComfyUI's hook "post_input", and the rotation
is made here.

Shapes: B images, H heads, L tokens, D width of a head."""

from __future__ import annotations

from typing import Any

import comfy.ldm.modules.attention
import torch
from torch import Tensor, nn


class RotaryAttention:
    """Belongs to one forward and its recomputation: it keeps the positions of that forward's tokens."""

    def __init__(self, embed: nn.Module) -> None:
        """`embed` is the model's own: ids (B, L, axes) → rotation matrices (B, 1, L, D/2, 2, 2)."""
        self._embed = embed

    def options(self) -> dict[str, Any]:
        """What the forward takes as `transformer_options`."""
        return {"patches": {"post_input": [self._take_positions]}, "optimized_attention_override": self._attend}

    def _take_positions(self, inputs: dict[str, Any]) -> dict[str, Any]:
        matrices = self._embed(torch.cat((inputs["txt_ids"], inputs["img_ids"]), dim=1))
        self._rotation = torch.complex(matrices[..., 0, 0].contiguous(), matrices[..., 1, 0].contiguous())
        return {**inputs, "img_ids": None}

    def _rotate(self, x: Tensor) -> Tensor:
        """(B, H, L, D), each pair of values turned by the angle of its token."""
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self._rotation).flatten(-2).to(x.dtype)

    def _attend(self, _, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """PyTorch's attention: the others have no backward."""
        pytorch = comfy.ldm.modules.attention.attention_pytorch
        return pytorch(self._rotate(q), self._rotate(k), v, *args, **kwargs)
