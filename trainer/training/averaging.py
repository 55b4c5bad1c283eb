"""Averages the weights over the steps. The average is measured, drawn and saved, while training goes on with the
weights."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..disk.packages import require
from ..model.transfer import copies
from ..recipe.config import TrainConfig
from ..recipe.optimizers import OPTIMIZERS
from .rounding import in_fp32


class Averaged:
    """Gives the exponential moving average (EMA) of the adapter if `ema_decay` is set; otherwise the average that
    ScheduleFreeAdamW keeps (Defazio et al. 2024, arXiv:2405.15682); otherwise the adapter as it is.

    The EMA is diffusers' `EMAModel`, in fp32: s ← s − (1 − d)(s − p) after each step. At step k the decay d is
    min(ema_decay, k / (k + 9)), and 0 at k = 1. So it covers about the last ninth of the steps taken, and forgets the
    adapter's empty start even in a short run: d reaches 0.9 at step 81, 0.99 at step 891."""

    def __init__(self, params: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer, config: TrainConfig) -> None:
        self.params, self.optimizer = list(params), cast(Any, optimizer)  # schedule-free ones have eval and train
        self.lock = threading.RLock()
        """Is held while the parameters hold the average: a prompt may ask for the LoRA while a state is saved."""
        self.schedule_free = OPTIMIZERS[config.optimizer].averages
        self.ema = None
        if config.ema_decay:
            self.ema = require("diffusers.training_utils").EMAModel(
                self.params, decay=config.ema_decay, foreach=True)
            self.ema.to(dtype=torch.float32)  # bf16 would lose what a decay of 0.99 adds

    def update(self) -> None:
        """Adds the step just done to the average."""
        if self.ema:
            assert all(p.requires_grad for p in self.params)  # EMAModel does not average what is frozen
            self.ema.step(self.params)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns the EMA's tensors, copied to the CPU, and its step count; nothing if there is no EMA."""
        if not self.ema:
            return {}, {}
        tensors = {str(i): s.cpu().clone().contiguous() for i, s in enumerate(self.ema.shadow_params)}
        return tensors, {"step": self.ema.optimization_step}

    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Puts back what `state` returned."""
        if self.ema:
            shadows = [tensors[str(i)].to(p.device) for i, p in enumerate(self.params)]
            self.ema.load_state_dict({"shadow_params": shadows, "optimization_step": numbers["step"]})

    @contextmanager
    def in_effect(self) -> Iterator[None]:
        """Puts the average into the parameters while inside. Afterwards they and the optimizer are as before, bit for
        bit, also if there was no memory for the average."""
        with self.lock:
            kept = copies(self.params) if self.ema or self.schedule_free else []
            groups = [dict(group) for group in self.optimizer.param_groups]
            try:
                self._put()
                yield
            finally:
                self._put_back(kept, groups)

    def _put(self) -> None:
        if self.ema:
            self.ema.copy_to(self.params)
        elif self.schedule_free:
            with in_fp32(self.params, narrow=Tensor.bfloat16):
                self.optimizer.eval()

    @torch.no_grad()
    def _put_back(self, kept: list[Tensor], groups: list[dict[str, Any]]) -> None:
        """Takes no memory of the device. The optimizer's own way back to the weights does, and is not exact."""
        for param, value in zip(self.params, kept, strict=False):
            param.copy_(value)
        for group, values in zip(self.optimizer.param_groups, groups, strict=True):
            group.update(values)
