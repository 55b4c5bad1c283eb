"""Optimizers and learning-rate schedules: bitsandbytes and diffusers, chosen and checked."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn

from .config import TrainConfig
from .packages import require

log = logging.getLogger(__name__)


def make_optimizer(params: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer over all adapter parameters.

    Where bitsandbytes is installed but its 8-bit AdamW does not work on the parameters' device, a warning says so and
    plain AdamW takes its place. Raises RuntimeError if bitsandbytes is not installed."""
    options = {"lr": config.learning_rate, "betas": (0.9, 0.999), "weight_decay": config.weight_decay}
    if config.optimizer == "AdamW8bit":
        try:
            adamw8bit = require("bitsandbytes").optim.AdamW8bit
            _try_out(adamw8bit, params[0].device)
            return adamw8bit(params, **options)
        except (ImportError, OSError, RuntimeError, NotImplementedError) as err:
            if isinstance(err.__cause__, ModuleNotFoundError):
                raise
            log.warning("8-bit AdamW does not work here (%s). Training goes on with plain AdamW, which needs 6 bytes "
                        "more for each LoRA parameter. An update may help: pip install -U bitsandbytes", err)
    return torch.optim.AdamW(params, **options)


def _try_out(optimizer: Callable[..., torch.optim.Optimizer], device: torch.device) -> None:
    """One step on a throw-away parameter, large enough that its state is kept in 8 bits."""
    param = nn.Parameter(torch.ones(8192, device=device))
    param.grad = torch.ones_like(param)
    optimizer([param], lr=1e-3).step()
    if not bool((param < 1).all()):
        raise RuntimeError("a trial step did not lower the parameter")


def make_lr_scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig) -> torch.optim.lr_scheduler.LRScheduler:
    """diffusers' schedule of that name, after a linear warm-up."""
    name = "constant_with_warmup" if config.lr_scheduler == "constant" else config.lr_scheduler
    return require("diffusers.optimization").get_scheduler(
        name, optimizer, num_warmup_steps=config.lr_warmup_steps, num_training_steps=config.steps)
