"""Optimizers and learning-rate schedules: other people's, chosen, set up and tried out."""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ..disk.packages import require
from ..recipe.config import TrainConfig

log = logging.getLogger(__name__)

WINDOWS = os.name == "nt"

BITSANDBYTES = ("AdamW8bit", "PagedAdamW8bit", "AdEMAMix8bit", "Lion8bit")
PYTORCH_OPTIMIZER = ("Prodigy", "ScheduleFreeAdamW", "CAME")
PLAINER = {"PagedAdamW8bit": "AdamW8bit", "AdEMAMix8bit": "AdEMAMix", "Lion8bit": "Lion"}
"""bitsandbytes' next best where one of its optimizers does not work. After these comes torch's AdamW."""


def packages_for(config: TrainConfig) -> tuple[str, ...]:
    """Modules that this recipe needs beside `packages.PACKAGES`."""
    own = {"Adafactor": ("transformers", "transformers.optimization")}
    own |= dict.fromkeys(PYTORCH_OPTIMIZER, ("pytorch_optimizer",))
    return own.get(config.optimizer, ()) + (("diffusers.training_utils",) if config.ema_decay else ())


def make_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer over groups of parameters, each `{"params": [...], "lr": float}` with a learning rate above 0.

    Where one of bitsandbytes' does not work on the parameters' device, a warning says so and a plainer one takes its
    place. Raises RuntimeError if the package it comes from is not installed."""
    groups = [dict(group) for group in groups]  # torch fills in what is missing, in place
    options: dict[str, Any] = {"lr": abs(config.learning_rate), "weight_decay": config.weight_decay}
    if config.optimizer in BITSANDBYTES:
        found = _bitsandbytes(config.optimizer, groups, options | _settings(config))
        return found or torch.optim.AdamW(groups, **options)
    if config.optimizer == "AdamW":
        return torch.optim.AdamW(groups, **options)
    module = "pytorch_optimizer" if config.optimizer in PYTORCH_OPTIMIZER else "transformers.optimization"
    return getattr(require(module), config.optimizer)(groups, **options, **_settings(config))


def _settings(config: TrainConfig) -> dict[str, Any]:
    """What an optimizer is given beside learning rate and weight decay, where its own defaults do not fit."""
    if config.optimizer == "AdEMAMix8bit":
        # Pagliardini et al. 2024 (arXiv:2409.03137) ramp alpha and beta3 over the run, as the slow average would
        # otherwise dominate at the start. Their beta3 of 0.9999 has a half-life of 6931 steps, longer than a LoRA's
        # whole run; that of 0.999 is 693. `steps`, so that extending a run does not bend the ramp it has behind it.
        return {"betas": (0.9, 0.999, 0.999), "alpha": 5.0, "t_alpha": config.steps, "t_beta3": config.steps}
    if config.optimizer == "Adafactor":
        # The learning rate is ours. Scaled by the parameter's size, which is 0 for LoRA's B, it would start a thousand
        # times too low; torch's Adafactor always scales, so this is transformers'.
        return {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    if config.optimizer == "Prodigy":
        # What its authors recommend for diffusion models: https://github.com/konstmish/prodigy#how-to-use
        return {"safeguard_warmup": True, "bias_correction": True}
    return {}


def _bitsandbytes(name: str, groups: list[dict], options: dict[str, Any]) -> torch.optim.Optimizer | None:
    """bitsandbytes' optimizer of that name or its next best; None if none of them works."""
    try:
        if WINDOWS and name.startswith("Paged"):
            raise NotImplementedError("Windows does not page a GPU's memory, and forbids the CPU to read it meanwhile")
        optimizer = getattr(require("bitsandbytes").optim, name)
        _try_out(optimizer, options, groups[0]["params"][0].device)
        return optimizer(groups, **options)
    except (ImportError, OSError, RuntimeError, NotImplementedError) as err:
        if isinstance(err.__cause__, ModuleNotFoundError):
            raise
        log.warning("%s does not work here (%s). Training goes on with %s, which needs more memory. An update may "
                    "help: pip install -U bitsandbytes", name, err, PLAINER.get(name, "plain AdamW"))
    return _bitsandbytes(PLAINER[name], groups, options) if name in PLAINER else None


def _try_out(optimizer: Any, options: dict[str, Any], device: torch.device) -> None:
    """One step on a throw-away parameter, large enough that its state is kept in 8 bits and paged."""
    param = nn.Parameter(torch.ones(1 << 17, device=device))
    param.grad = torch.ones_like(param)
    optimizer([param], **{**options, "lr": 1e-3, "weight_decay": 0.0}).step()
    if not bool((param < 1).all()):
        raise RuntimeError("a trial step did not lower the parameter")


def make_lr_scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig) -> LambdaLR:
    """The schedule of that name over all the run's steps, after a linear warm-up; diffusers' own but for `wsd`.

    Raises RuntimeError if diffusers is not installed."""
    warmup, total = config.lr_warmup_steps, config.total_steps
    if config.lr_scheduler == "wsd":
        decay = config.lr_decay_steps or max(1, total // 10)
        return LambdaLR(optimizer, partial(_wsd, warmup=warmup, decay=decay, total=total))
    schedules = require("diffusers.optimization")
    if config.lr_scheduler == "polynomial":
        # Not by `get_scheduler`, which cannot be told to end at 0. It divides by the steps after the warm-up.
        return schedules.get_polynomial_decay_schedule_with_warmup(
            optimizer, warmup, max(total, warmup + 1), lr_end=0.0, power=config.lr_power)
    name = "constant_with_warmup" if config.lr_scheduler == "constant" else config.lr_scheduler
    return schedules.get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=total, num_cycles=config.lr_cycles)


def _wsd(step: int, warmup: int, decay: int, total: int) -> float:
    """Warmup, stable, decay (Hu et al. 2024, arXiv:2404.06395, section 4.2), with a linear decay that ends at 0."""
    return max(0.0, min(step / warmup if warmup else 1.0, 1.0, (total - step) / decay))
