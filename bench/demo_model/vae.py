"""Trains the demo model's VAE: ComfyUI's own TAESD module with 16 latent channels, on crops of Noto emoji.

Shapes: B pictures, H W pixels; latents (B, 16, H/8, W/8).
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from comfy.taesd.taesd import TAESD
from safetensors.torch import save_file
from torch import Tensor, nn

from .emoji import SEED, pictures

CHANNELS = 16
STEPS = 9000
BATCH = 16
CROP = 64
LEARNING_RATE = 1e-3
LATENT_NOISE = 0.1
"""The noise that the decoder must bear has a standard deviation between 0 and this."""
PRIOR = 5e-4
"""Weight of the latents' mean square in the loss."""
FLUX_SCALE, FLUX_SHIFT = 0.3611, 0.1159
"""Flux latents enter the transformer as (latent - shift) * scale (comfy.latent_formats.Flux)."""


def build() -> TAESD:
    """An untrained autoencoder whose latents the Flux latent format maps to the encoder's own scale."""
    torch.manual_seed(SEED)
    vae = TAESD(latent_channels=CHANNELS)
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, module in vae.named_modules():
        if name.endswith("conv.4"):  # the last layer of each residual branch starts small: 20 blocks stay stable
            module.weight.data.mul_(0.1)
    return vae.to(memory_format=torch.channels_last)


def augment(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Crops, flips, quarter turns and swapped or inverted colours: the VAE should know no names. Returns floats in
    0…1."""
    y, x = torch.randint(0, batch.shape[-1] - CROP + 1, (2,), generator=generator).tolist()
    batch = batch[..., y:y + CROP, x:x + CROP].float() / 255
    draw = torch.randint(0, 12, (len(batch),), generator=generator)
    out = torch.rot90(batch, int(draw[0]) % 4, (-2, -1))
    if int(draw[0]) > 5:
        out = out.flip(-1)
    swap = draw % 3 == 0
    out[swap] = out[swap][:, torch.randperm(3, generator=generator)]
    invert = draw % 12 == 1
    out[invert] = 1 - out[invert]
    return out.contiguous(memory_format=torch.channels_last)


def difference(a: Tensor, b: Tensor) -> Tensor:
    """L1 for clean flat colours, L2 for fidelity."""
    error = a - b
    return error.abs().mean() + 5 * error.square().mean()


def loss(vae: TAESD, pixels: Tensor, generator: torch.Generator, step: int) -> Tensor:
    """Reconstruction under latent noise, and a prior that keeps the latents small enough for the noise to matter. Every
    fourth step the picture is rebuilt at half size from pooled latents: latents that scale like pictures are easier to
    diffuse (Skorokhodov et al. 2025, arXiv:2502.14831)."""
    latents, target = vae.taesd_encoder(pixels), pixels
    prior = latents.float().square().mean()
    if step % 4 == 0:
        latents, target = F.avg_pool2d(latents, 2), F.avg_pool2d(pixels, 2)
    strength = torch.rand((len(pixels), 1, 1, 1), generator=generator) * LATENT_NOISE
    noise = torch.randn(latents.shape, generator=generator) * strength
    return difference(vae.taesd_decoder(latents + noise).float(), target) + PRIOR * prior


@torch.no_grad()
def declare_scale(vae: TAESD, data: Tensor) -> None:
    """Sets the module's own scale and shift so that Flux's latent format turns its latents into ones of unit
    variance."""
    latents = torch.cat([vae.taesd_encoder(part.float() / 255) for part in data[::8].split(32)])
    print(f"latents: std {latents.std():.3f}, channel means up to {latents.mean((0, 2, 3)).abs().max():.3f}")
    vae.vae_scale.fill_(FLUX_SCALE * latents.std())
    vae.vae_shift.fill_(FLUX_SHIFT)


def train(out: Path, steps: int = STEPS) -> TAESD:
    """Trains the autoencoder and writes `out` in fp16, its latents in Flux's range."""
    _, data = pictures("noto")
    vae, generator = build(), torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05,
                                                   cycle_momentum=False)
    began, running = time.time(), 0.0
    for step in range(steps):
        chosen = torch.randint(0, len(data), (BATCH,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(vae, augment(data[chosen], generator), generator, step)
        value.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        running += (value.item() - running) / min(step + 1, 100)
        if (step + 1) % 250 == 0:
            print(f"vae step {step + 1}/{steps}  loss {running:.4f}  {time.time() - began:.0f} s", flush=True)
    declare_scale(vae, data)
    save_file({k: v.half().contiguous() for k, v in vae.state_dict().items()}, out)
    return vae


@torch.no_grad()
def psnr(vae: TAESD, data: Tensor) -> float:
    """Peak signal-to-noise ratio in dB over pictures (N, 3, H, W) uint8."""
    errors = []
    for part in data.split(32):
        pixels = part.float() / 255
        errors.append((vae.taesd_decoder(vae.taesd_encoder(pixels)).clamp(0, 1) - pixels).square().mean((1, 2, 3)))
    return (-10 * torch.cat(errors).mean().log10()).item()
