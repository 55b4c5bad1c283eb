"""Flow matching: which timesteps, which noise, which target, which loss.

Shapes: B images, C latent channels, H W latent rows and columns.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from .config import TimestepSampling

PATCH = 2
"""Latent pixels along one edge of a transformer token."""


def generator(seed: int, *counters: int | str) -> torch.Generator:
    """A CPU generator that depends on its arguments alone, so that micro-batch k draws the same in any run."""
    digest = hashlib.sha256(":".join(map(str, (seed, *counters))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def resolution_shift(tokens: int) -> float:
    """The shift s = e^μ, with μ on the line through (256 tokens, 0.5) and (4096 tokens, 1.15).

    From BFL's reference sampler (black-forest-labs/flux, `sampling.get_lin_function`)."""
    return math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """σ' = sσ / (1 + (s − 1)σ): Esser et al. 2024 (arXiv:2403.03206), equation 23."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def sample_sigmas(count: int, tokens: int, sampling: TimestepSampling, draw: torch.Generator) -> Tensor:
    """Noise levels (B,) in 0…1, fp32.

    `sigmoid` is logit-normal(0, 1) (Esser et al. 2024, section 3.1); `resolution_shift` shifts those samples towards
    noise as far as the sampler does for a picture of `tokens` tokens."""
    sigmas = torch.sigmoid(torch.randn(count, generator=draw))
    return shift_sigmas(sigmas, resolution_shift(tokens)) if sampling == "resolution_shift" else sigmas


def add_noise(latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """x_σ = (1 − σ) x₀ + σ ε, for (B, C, H, W) and σ (B,)."""
    sigmas = sigmas.view(-1, 1, 1, 1)
    return (1 - sigmas) * latents + sigmas * noise


def velocity(latents: Tensor, noise: Tensor) -> Tensor:
    """dx_σ/dσ = ε − x₀: what the model predicts (Liu et al. 2022, arXiv:2209.03003)."""
    return noise - latents


def flow_matching_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each image: (B, C, H, W) twice → (B,), fp32."""
    return (pred.float() - target.float()).square().mean((1, 2, 3))
