"""Small models of other families, to be refused: real architectures that ComfyUI recognises, without useful weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file


def save_pixart(path: Path) -> None:
    """PixArt-Σ with a single block: a transformer, but trained on noise (EPS), not by flow matching."""
    import comfy.ops
    from comfy.ldm.pixart.pixartms import PixArtMS

    model = PixArtMS(depth=1, model_max_length=300, micro_condition=False, dtype=torch.float16,
                     operations=comfy.ops.disable_weight_init)
    save_file({name: torch.zeros(value.shape, dtype=torch.float16) for name, value in model.state_dict().items()}, path)


def save_taesd(path: Path, latent_channels: int) -> None:
    """A tiny autoencoder with that many latent channels."""
    from comfy.taesd.taesd import TAESD

    state = TAESD(latent_channels=latent_channels).state_dict()
    save_file({name: torch.zeros(value.shape) for name, value in state.items()}, path)


def save_controlnet(path: Path) -> None:
    """A ControlNet for the demo model in XLabs' form, one double block, random weights: it changes the picture."""
    import comfy.ops
    from comfy.ldm.flux.controlnet import ControlNetFlux
    from tiny_flux import SHAPE

    model = ControlNetFlux(dtype=torch.float32, operations=comfy.ops.manual_cast,
                           **{**SHAPE, "depth": 1, "depth_single_blocks": 0})
    draw, state = torch.Generator().manual_seed(0), {}
    for name, value in model.state_dict().items():
        old = name[:-len("weight")] + "scale" if name.endswith(("query_norm.weight", "key_norm.weight")) else name
        weight = torch.randn(value.shape, generator=draw) / max(value.shape[-1], 16) ** 0.5
        state[old] = torch.ones(value.shape) if old.endswith("scale") else weight
    save_file(state, path)
