"""Lists the optimizers, one row each: where it comes from, what it keeps, what it is given, what it does by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """Describes an optimizer. Its class has the name of its row."""

    module: str
    """The module that the class is imported from when training starts."""
    packages: tuple[str, ...] = ()
    """Modules that only this optimizer needs: the package to look for, then what takes long to import."""
    instead: str = ""
    """The row that takes its place where it does not work. Empty: it works everywhere, and is not tried out."""
    offered: bool = True
    """Whether a recipe can name it. Others only take another's place."""

    moments: int
    """How many values it keeps for each value of the adapter."""
    eight_bit: bool = False
    """Whether it keeps them in 8 bits instead of 32."""
    paged: bool = False
    """Whether what it keeps may leave a full GPU, in memory that the GPU shares with the CPU."""

    settings: Callable[[int], dict[str, Any]] = lambda steps: {}
    """(steps of the recipe) → what it is given besides learning rate and weight decay if its defaults do not fit."""

    finds_rate: bool = False
    """Whether it finds the learning rate itself. The recipe's rate is then a factor on it, one for all parameters."""
    averages: bool = False
    """Whether it averages the weights itself, instead of lowering the learning rate."""


def _ademamix(steps: int) -> dict[str, Any]:
    """Ramps alpha and beta3 over the run as Pagliardini et al. 2024 (arXiv:2409.03137) do, because the slow average
    would otherwise dominate at the start. Their beta3 of 0.9999 has a half-life of 6931 steps, longer than a LoRA's
    whole run; that of 0.999 is 693. The ramp ends at `steps`, so that extending a run does not change the steps that
    are done."""
    return {"betas": (0.9, 0.999, 0.999), "alpha": 5.0, "t_alpha": steps, "t_beta3": steps}


def _adafactor(steps: int) -> dict[str, Any]:
    """Keeps our learning rate as it is. Scaled by the parameter's size, which is 0 for LoRA's B, the rate would
    start a thousand times too low. torch's Adafactor always scales, so this is transformers'."""
    return {"scale_parameter": False, "relative_step": False, "warmup_init": False}


def _prodigy(steps: int) -> dict[str, Any]:
    """Returns what its authors recommend for diffusion models: https://github.com/konstmish/prodigy#how-to-use"""
    return {"safeguard_warmup": True, "bias_correction": True}


BNB, OTHERS = "bitsandbytes.optim", "pytorch_optimizer"
OPTIMIZERS = {
    "AdamW8bit": Optimizer(module=BNB, moments=2, eight_bit=True, instead="AdamW"),
    "PagedAdamW8bit": Optimizer(module=BNB, moments=2, eight_bit=True, paged=True, instead="AdamW8bit"),
    "AdEMAMix8bit": Optimizer(module=BNB, moments=3, eight_bit=True, settings=_ademamix, instead="AdEMAMix"),
    "Lion8bit": Optimizer(module=BNB, moments=1, eight_bit=True, instead="Lion"),
    "AdamW": Optimizer(module="torch.optim", moments=2),
    "Adafactor": Optimizer(module="transformers.optimization", packages=("transformers", "transformers.optimization"),
                           moments=0, settings=_adafactor),
    "Prodigy": Optimizer(module=OTHERS, packages=(OTHERS,), moments=4, settings=_prodigy, finds_rate=True),
    "ScheduleFreeAdamW": Optimizer(module=OTHERS, packages=(OTHERS,), moments=2, averages=True),
    "CAME": Optimizer(module=OTHERS, packages=(OTHERS,), moments=1),
    "AdEMAMix": Optimizer(module=BNB, moments=3, settings=_ademamix, offered=False, instead="AdamW"),
    "Lion": Optimizer(module=BNB, moments=1, offered=False, instead="AdamW"),
}
OFFERED = tuple(name for name, row in OPTIMIZERS.items() if row.offered)
"""The optimizers that a recipe can name."""
