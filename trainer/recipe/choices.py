"""The closed choices of a recipe, by the field's names for them."""

from __future__ import annotations

from typing import Literal

Adapter = Literal["LoRA", "rsLoRA", "DoRA", "LoHa", "LoKr", "OFT"]
AdapterInit = Literal["kaiming", "orthogonal", "PiSSA"]
TargetModules = Literal["all", "attention and mlp", "attention", "style", "character"]
AdapterDtype = Literal["fp32", "bf16"]
Optimizer = Literal["AdamW8bit", "PagedAdamW8bit", "AdEMAMix8bit", "Lion8bit", "AdamW", "Adafactor", "Prodigy",
                    "ScheduleFreeAdamW", "CAME"]
LRScheduler = Literal["cosine", "linear", "constant", "cosine_with_restarts", "polynomial", "wsd"]
TimestepSampling = Literal["sigmoid", "logit_normal", "uniform", "resolution_shift", "fixed_shift"]
Loss = Literal["l2", "l1", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "exponential", "snr"]
CaptionShuffle = Literal["none", "tags", "sentences"]
Sharing = Literal["prompts first", "fair share", "training first"]
"""Who goes first when prompts and a training both want the GPU."""

LORA_LIKE = ("LoRA", "rsLoRA", "DoRA")
"""Adapters that are a pair of matrices A and B."""
