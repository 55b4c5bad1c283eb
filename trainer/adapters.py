"""The trainable part: PEFT adapters injected into a training view, and their weights by ComfyUI's names."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .config import TargetModules, TrainConfig
from .packages import require
from .view import FrozenLinear

BLOCK = r"(double_blocks|single_blocks)\.\d+\."
TARGETS: dict[TargetModules, str] = {
    "all": BLOCK + ".*",
    "attention and mlp": BLOCK + r"(img_attn|txt_attn|img_mlp|txt_mlp|linear[12]).*",
    "attention": BLOCK + r"((img_attn|txt_attn)\..*|linear[12])",
}
"""Names of FLUX.1's Linears. A single block's linear1 and linear2 hold its attention and its MLP in one."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def linears(view: nn.Module, target: TargetModules) -> list[str]:
    """Names of the view's Linears that `target` stands for."""
    return [name for name, module in view.named_modules()
            if isinstance(module, nn.Linear) and re.fullmatch(TARGETS[target], name)]


def inject_lora(view: nn.Module, config: TrainConfig) -> list[nn.Parameter]:
    """Adds LoRA (Hu et al. 2021, arXiv:2106.09685) to the view: h = Wx + (α/R) BAx, with B = 0 at the start.

    Returns the trainable parameters. Raises RuntimeError if peft is not installed."""
    peft = require("peft")
    targets = linears(view, config.target_modules)
    lora = peft.LoraConfig(r=config.rank, lora_alpha=config.lora_alpha, target_modules=targets)
    with torch.random.fork_rng(devices=[]):  # PEFT initialises from the global generator, which is not ours to move
        torch.default_generator.manual_seed(config.seed)
        peft.inject_adapter_in_model(lora, view)
    for module in view.modules():
        if isinstance(getattr(module, "base_layer", None), FrozenLinear):
            module.forward = partial(_forward, module)
    return [p for p in view.parameters() if p.requires_grad]


def _forward(layer: Any, x: Tensor) -> Tensor:
    """What PEFT's LoRA layer computes, in fewer passes over memory."""
    (name,) = layer.active_adapters
    return layer.base_layer.with_lora(x, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])


def weights(view: nn.Module) -> dict[str, Tensor]:
    """The adapter's own tensors by name, not copied: `<module>.lora_A.weight` (R, I), `<module>.lora_B.weight` (O,
    R)."""
    return dict(require("peft").get_peft_model_state_dict(view))


def load_weights(view: nn.Module, values: dict[str, Tensor]) -> None:
    """Puts saved values into the adapter. Raises ValueError if names or shapes differ."""
    own = weights(view)
    wrong = sorted({*own} ^ {*values}) or [n for n, v in values.items() if v.shape != own[n].shape]
    if wrong:
        raise ValueError(f"The saved adapter does not fit this model: {', '.join(wrong[:3])} and {len(wrong)} in all.")
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)


def comfyui_lora(view: nn.Module, config: TrainConfig) -> dict[str, Tensor]:
    """A copy of the adapter as ComfyUI's LoRA loader reads it. `.alpha` is always there: without it ComfyUI takes a
    scale of 1, whatever the rank."""
    own = weights(view)
    lora = {f"diffusion_model.{name}": value.detach().to("cpu", copy=True).contiguous() for name, value in own.items()}
    for name in own:
        if name.endswith(".lora_A.weight"):
            lora[f"diffusion_model.{name.removesuffix('.lora_A.weight')}.alpha"] = torch.tensor(config.lora_alpha)
    return lora

