"""Fetches the weights of live modules as ComfyUI would for inference: cast, dequantized, streamed and patched."""

from __future__ import annotations

from functools import partial
from typing import Any

import comfy.model_management as mm
import comfy.ops
import torch
from torch import Tensor, nn

from ..disk.packages import require
from ..model.lending import Weight
from ..model.view import is_linear

try:
    from comfy.quant_ops import QuantizedTensor
except ImportError:  # a ComfyUI without quantized checkpoints
    QuantizedTensor = ()


def fetch(live: Any, like: Tensor) -> Weight:
    """Returns the weight of a live module in the device and dtype of `like`: cast, dequantized, streamed and patched as
    ComfyUI would for inference. It may lie in a buffer that the next layer overwrites."""
    if live.weight is None:
        return Weight(None, None, _nothing)
    if _is_plain(live, like.dtype) and all(p is None or p.device == like.device for p in live._parameters.values()):
        return Weight(live.weight, live.bias if "bias" in live._parameters else None, _nothing)
    if hasattr(live, "cast_bias_weight"):  # layers of other node packs that unpack their weights themselves, as GGUF's
        weight, bias = live.cast_bias_weight(like)
        return Weight(weight, bias, _nothing)
    if getattr(live.weight, "quant_state", None) is not None:  # bitsandbytes' Linear4bit: NF4 and FP4
        return _dequantize_4bit(live, like)
    weight, bias, stream = comfy.ops.cast_bias_weight(live, like, offloadable=True)
    usable = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
    scale = getattr(live, "pre_quant_scale", None)
    if scale is not None:  # AWQ-style checkpoints multiply the input; the weight's columns may be multiplied as well
        usable = usable * mm.cast_to_device(scale, like.device, like.dtype)
    # A weight that came over a stream lies in a buffer which the stream's next weight overwrites.
    release, streamed = partial(comfy.ops.uncast_bias_weight, live, weight, bias, stream), bool(stream and stream[0])
    return Weight(usable, bias, release, lasting=not streamed)


def blank(streamed: bool, live: Any, like: Tensor) -> Weight:
    """Returns what `fetch` would, without values. A weight that `fetch` takes as it is has no memory."""
    if live.weight is None:
        return Weight(None, None, _nothing)
    shape = (live.out_features, live.in_features) if is_linear(live) else live.weight.shape
    made = streamed or not _is_plain(live, like.dtype)
    bias = None if getattr(live, "bias", None) is None else like.new_empty(1).expand(shape[0])
    return Weight(like.new_empty(shape) if made else like.new_empty(1).expand(shape), bias, _nothing)


def _is_plain(live: Any, dtype: torch.dtype) -> bool:
    """Returns whether the weight of a module, once it is on the device, is used just as it lies in memory, as
    `cast_bias_weight` would find out in ten times as long."""
    params, others = live._parameters, live.__dict__
    return (all(param is None or (type(param) is nn.Parameter and param.dtype == dtype) for param in params.values())
            and params.keys() <= {"weight", "bias"} and not live._buffers and "_v" not in others
            and "pre_quant_scale" not in others and not hasattr(type(live), "cast_bias_weight")
            and not getattr(live, "weight_function", True) and not getattr(live, "bias_function", True))


def _dequantize_4bit(live: Any, like: Tensor) -> Weight:
    packed = live.weight
    weight = require("bitsandbytes.functional").dequantize_4bit(packed.data, packed.quant_state)
    bias = None if live.bias is None else live.bias.detach().to(like.device, like.dtype)
    return Weight(weight.to(like.device, like.dtype), bias, _nothing)


def _nothing() -> None:
    return None
