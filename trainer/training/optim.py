"""Chooses, sets up and tries out optimizers and learning-rate schedules, which are other people's."""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ..disk.packages import require
from ..model.shortage import is_out_of_memory
from ..recipe.config import TrainConfig
from ..recipe.optimizers import OPTIMIZERS, Optimizer

log = logging.getLogger(__name__)

WINDOWS = os.name == "nt"


def packages_for(config: TrainConfig) -> tuple[str, ...]:
    """Returns the modules that this recipe needs besides `packages.PACKAGES`."""
    return OPTIMIZERS[config.optimizer].packages + (("diffusers.training_utils",) if config.ema_decay else ())


def make_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """Makes the optimizer over groups of parameters. A group is `{"params": [...], "lr": float}`, with a learning rate
    above 0.

    If the optimizer does not work on the parameters' device, a warning says so and the next best takes its place.
    Raises RuntimeError if the package it comes from is not installed."""
    groups = [dict(group) for group in groups]  # torch fills in what is missing, in place
    name = config.optimizer
    while True:
        row = OPTIMIZERS[name]
        options = {"lr": abs(config.learning_rate), "weight_decay": config.weight_decay, **row.settings(config.steps)}
        try:
            return _made(name, row, groups, options)
        except (ImportError, OSError, RuntimeError, NotImplementedError) as err:
            if not row.instead or isinstance(err.__cause__, ModuleNotFoundError) or is_out_of_memory(err):
                raise
            plain = "plain " if OPTIMIZERS[row.instead].module == "torch.optim" else ""
            log.warning("%s does not work here (%s). Training goes on with %s%s, which needs more memory. An update "
                        "may help: pip install -U bitsandbytes", name, err, plain, row.instead)
            name = row.instead


def _made(name: str, row: Optimizer, groups: list[dict[str, Any]], options: dict[str, Any]) -> torch.optim.Optimizer:
    if WINDOWS and row.paged:
        raise NotImplementedError("Windows does not page a GPU's memory, and forbids the CPU to read it meanwhile")
    optimizer, device = getattr(require(row.module), name), groups[0]["params"][0].device
    if row.instead:
        _try_out(optimizer, options, device)
    if row.module == "torch.optim":  # all parameters in a few calls: in one kernel, or operator by operator
        options["fused" if device.type == "cuda" else "foreach"] = True
    return optimizer(groups, **options)


def _try_out(optimizer: Any, options: dict[str, Any], device: torch.device) -> None:
    """Takes one step on a throw-away parameter, so large that its state is kept in 8 bits and paged. Raises
    RuntimeError if the step does not lower it."""
    param = nn.Parameter(torch.ones(1 << 17, device=device))
    param.grad = torch.ones_like(param)
    optimizer([param], **{**options, "lr": 1e-3, "weight_decay": 0.0}).step()
    if not bool((param < 1).all()):
        raise RuntimeError("a trial step did not lower the parameter")


def make_lr_scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig) -> LambdaLR:
    """Makes the recipe's schedule over all steps of the run, after a linear warm-up. All but `wsd` are diffusers' own.

    Raises RuntimeError if diffusers is not installed."""
    warmup, total = config.lr_warmup_steps, config.total_steps
    if config.lr_scheduler == "wsd":
        decay = config.lr_decay_steps or max(1, total // 10)
        return LambdaLR(optimizer, partial(_wsd, warmup=warmup, decay=decay, total=total))
    schedules = require("diffusers.optimization")
    if config.lr_scheduler == "polynomial":
        # `get_scheduler` cannot be told to end at 0. This function divides by the steps after the warm-up.
        return schedules.get_polynomial_decay_schedule_with_warmup(
            optimizer, warmup, max(total, warmup + 1), lr_end=0.0, power=config.lr_power)
    name = "constant_with_warmup" if config.lr_scheduler == "constant" else config.lr_scheduler
    return schedules.get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=total, num_cycles=config.lr_cycles)


def _wsd(step: int, warmup: int, decay: int, total: int) -> float:
    """Returns the learning rate's factor for warmup, stable, decay (Hu et al. 2024, arXiv:2404.06395, section 4.2). The
    decay is linear and ends at 0."""
    return max(0.0, min(step / warmup if warmup else 1.0, 1.0, (total - step) / decay))
