"""Encodes and decodes pictures with the wired VAE.

Shapes: B images, C latent channels, H W latent rows and columns, h w pixels.
"""

from __future__ import annotations

import comfy.sd
import torch
from torch import Tensor

from .interrupts import translated


def encode_images(vae: comfy.sd.VAE, images: Tensor) -> Tensor:
    """Encodes pictures (B, h, w, 3) in 0…1 and returns raw latents (B, C, H, W), fp32, on the CPU."""
    with torch.inference_mode(), translated():
        latents = vae.encode(images)
    return latents.clone().float().cpu()


def decode_image(vae: comfy.sd.VAE, latents: Tensor) -> Tensor:
    """Decodes raw latents (1, C, H, W) and returns a picture (h, w, 3) in 0…1, fp32, on the CPU."""
    with torch.inference_mode(), translated():
        image = vae.decode(latents)
    return image[0].clone().float().cpu()
