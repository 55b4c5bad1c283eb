"""What the tests inside ComfyUI share: a tiny FLUX.1 with random weights, views of it, data for it."""

from __future__ import annotations

import comfy.ldm.flux.model
import comfy.ops
import comfy.sd
import torch
from comfy.taesd.taesd import TAESD
from livelora.trainer.lora.inject import inject
from livelora.trainer.model.checkpointing import Blocks
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.training.targets import layout

SHAPE = dict(in_channels=16, out_channels=16, vec_in_dim=128, context_in_dim=128, hidden_size=256, mlp_ratio=4.0,
             num_heads=2, depth=2, depth_single_blocks=2, axes_dim=[16, 56, 56], theta=10000, patch_size=2,
             qkv_bias=True, guidance_embed=True, txt_ids_dims=[])
CONFIG = TrainConfig(steps=10, rank=4, learning_rate=1e-3)
CAPTIONS = ["red apple", "a cat in a box", "one two three"]


def random_flux(seed: int = 0, **shape: int) -> dict[str, torch.Tensor]:
    """Weights of a tiny FLUX.1, of a size that keeps activations near one."""
    flux = comfy.ldm.flux.model.Flux(dtype=torch.float32, operations=comfy.ops.manual_cast, **{**SHAPE, **shape})
    draw, state = torch.Generator().manual_seed(seed), {}
    for name, value in flux.state_dict().items():
        if value.ndim == 1:
            state[name] = 0.02 * torch.randn(value.shape, generator=draw) + (1.0 if "norm" in name else 0.0)
        else:
            state[name] = torch.randn(value.shape, generator=draw) / value.shape[1] ** 0.5
    return state


def load_flux(state: dict[str, torch.Tensor], **options: torch.dtype):
    """The MODEL that Load Diffusion Model would give, loaded as the prompt worker loads it."""
    with torch.inference_mode():
        copies = {name: value.clone() for name, value in state.items()}
        return comfy.sd.load_diffusion_model_state_dict(copies, model_options=options)


def random_vae(seed: int = 1) -> comfy.sd.VAE:
    """A VAE of the right shape with random weights."""
    draw = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(value.shape, generator=draw) / max(1, value[0].numel()) ** 0.5 if value.ndim > 1
             else torch.zeros(value.shape) for name, value in TAESD(latent_channels=16).state_dict().items()}
    return comfy.sd.VAE(sd={**state, "vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)})


def make_view(host, checkpointing: bool = True, dtype: torch.dtype = torch.float32, std: float = 0.02):
    """A view with LoRA that is not zero, and its parameters."""
    view = host.view(dtype)
    params = inject(view, CONFIG, layout(view, CONFIG, host.family))
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in params:
            p.copy_(torch.randn(p.shape, generator=draw) * std)
    blocks = Blocks(host.family.blocks(view))
    blocks.kept = () if checkpointing else range(len(blocks.all))
    return view, params


def batch(host, size: int):
    """Latents, noise, sigmas and texts of so many images."""
    draw = torch.Generator().manual_seed(7)
    latents = torch.randn(size, 16, 8, 8, generator=draw)
    noise, sigmas = torch.randn(latents.shape, generator=draw), torch.rand(size, generator=draw)
    return latents, noise, sigmas, [host.encode_text(c) for c in CAPTIONS[:size]]


def loss(host, view, size: int = 1) -> torch.Tensor:
    """The flow-matching loss of a batch."""
    latents, noise, sigmas, texts = batch(host, size)
    s = sigmas.view(-1, 1, 1, 1)
    return (host.predict(view, (1 - s) * latents + s * noise, sigmas, texts, 1.0) - (noise - latents)).square().mean()


def gradients(host, view, params, size: int = 1) -> list[torch.Tensor]:
    """Gradients of that loss."""
    for p in params:
        p.grad = None
    loss(host, view, size).backward()
    return [p.grad.clone() for p in params]
