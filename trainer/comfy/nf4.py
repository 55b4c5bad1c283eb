"""Packs weights into 4 bits with bitsandbytes, as one more layout of ComfyUI's quantized tensors.

ComfyUI moves, streams, dequantizes and patches a quantized tensor of any layout that is registered. A model of these
therefore works with everything that works with its own formats.

Shapes: N values of a weight, 64 in a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy.quant_ops import QuantizedLayout, QuantizedTensor, register_layout_class
from comfy_kitchen.tensor import BaseLayoutParams
from torch import Tensor

from ..disk.packages import require

NF4 = "LiveLoraNF4Layout"
"""The name under which ComfyUI knows the layout."""
BLOCK = 64
"""How many values share a scale."""
CHUNK = 2**16
"""How many blocks are packed at a time: 4 million values, which take some 100 MB while they are."""


class NF4Layout(QuantizedLayout):
    """Holds each value of a weight as one of 16 quantiles of the normal distribution, times the largest absolute value
    of its block (Dettmers et al. 2023, arXiv:2305.14314)."""

    @dataclass(frozen=True)
    class Params(BaseLayoutParams):
        """`scale` (N/64,) has the largest absolute value of each block in fp32."""

    @classmethod
    def quantize(cls, tensor: Tensor, stochastic_rounding: int | None = 0, before: Tensor | None = None,
                 **_: Any) -> tuple[Tensor, Params]:
        """Returns the packed values (N/2, 1) and their scales. N must be a multiple of 64.

        Values go to the nearest quantile; with `stochastic_rounding`, a seed, at random to the one above or below, so
        that the mean is kept. `before` are the scales (N/64,) that the weight had before it was patched."""
        chunks = tensor.detach().reshape(-1, BLOCK).split(CHUNK)
        if stochastic_rounding:
            draw = torch.Generator(tensor.device).manual_seed(stochastic_rounding)
            least = [None] * len(chunks) if before is None else before.to(tensor.device).split(CHUNK)
            parts = [_round_at_random(*each, draw) for each in zip(chunks, least, strict=True)]
        else:
            parts = [_round_to_nearest(each) for each in chunks]
        packed, scale = (torch.cat(part) for part in zip(*parts, strict=True))
        return packed, cls.Params(scale=scale, orig_dtype=tensor.dtype, orig_shape=tuple(tensor.shape))

    @classmethod
    def dequantize(cls, qdata: Tensor, params: Params) -> Tensor:
        """Returns the weight in its shape and dtype."""
        functional = require("bitsandbytes.functional")
        state = functional.QuantState(params.scale, shape=torch.Size(params.orig_shape), dtype=params.orig_dtype,
                                      blocksize=BLOCK, quant_type="nf4")
        return functional.dequantize_4bit(qdata, state)

    @classmethod
    def requantize_kwargs(cls, qtensor: QuantizedTensor) -> dict[str, Any]:
        """Returns what ComfyUI passes to `quantize` when it puts a patched weight in this one's place."""
        return {"before": qtensor._params.scale}

    @classmethod
    def get_plain_tensors(cls, qtensor: QuantizedTensor) -> tuple[Tensor, Tensor]:
        return qtensor._qdata, qtensor._params.scale

    @classmethod
    def state_dict_tensors(cls, qdata: Tensor, params: Params) -> dict[str, Tensor]:
        return {"": qdata, "_scale": params.scale}


def _round_to_nearest(blocks: Tensor) -> tuple[Tensor, Tensor]:
    packed, state = require("bitsandbytes.functional").quantize_4bit(blocks, blocksize=BLOCK, quant_type="nf4")
    return packed, state.absmax


def _round_at_random(blocks: Tensor, least: Tensor | None, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns packed values and scales, which are at least `least`. A LoRA changes a weight by less than the distance
    between two quantiles: rounded to the nearest, most of it would be gone. Where a scale stays what it was, a value
    that is not changed stays on its quantile."""
    quantiles = require("bitsandbytes.functional").get_4bit_type("nf4", device=blocks.device)
    scale = blocks.float().abs().amax(1)
    if least is not None:
        scale = torch.maximum(scale, least)
    values = blocks.float() / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    above = torch.bucketize(values, quantiles, out_int32=True).clamp_(1, len(quantiles) - 1)
    low, high = quantiles[above - 1], quantiles[above]
    goes_up = torch.rand(values.shape, generator=draw, device=blocks.device) * (high - low) < values - low
    index = (above - 1 + goes_up).to(torch.uint8).flatten()
    return (index[::2] << 4 | index[1::2])[:, None], scale


register_layout_class(NF4, NF4Layout)
