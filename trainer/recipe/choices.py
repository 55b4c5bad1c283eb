"""Lists the closed choices of a recipe, by the names that are common in the field. Kinds of adapter and optimizers have
tables of their own."""

from __future__ import annotations

from typing import Literal

TargetModules = Literal["all", "attention and mlp", "attention", "style", "character"]
AdapterDtype = Literal["fp32", "bf16"]
LRScheduler = Literal["cosine", "linear", "constant", "cosine_with_restarts", "polynomial", "wsd"]
TimestepSampling = Literal["sigmoid", "logit_normal", "uniform", "resolution_shift", "fixed_shift"]
Loss = Literal["l2", "l1", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "exponential", "snr"]
Checkpointing = Literal["auto", "all", "none"]
CaptionShuffle = Literal["none", "tags", "sentences"]
