"""Defines noise processes: how a picture becomes noise, and what the model predicts on the way.

Shapes: B images, C latent channels, H W latent rows and columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Process(Protocol):
    """Lists what training asks of a noise process. Noise levels σ run from 0 (the picture) to 1 (noise)."""

    @property
    def prediction_type(self) -> str:
        """Returns ModelSpec's name for what the model predicts."""
        ...

    @property
    def resolution_shift_name(self) -> str:
        """Returns sd-scripts' name for sampling noise levels in a way that follows the picture's size."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
        """Returns noisy latents (B, C, H, W) from latents and noise (B, C, H, W) at noise levels (B,)."""
        ...

    def target(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Returns what the model should predict, (B, C, H, W)."""
        ...

    def resolution_shift(self, tokens: int) -> float:
        """Returns the shift s with which the sampler draws a picture of `tokens` tokens."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Flow:
    """Flow matching on straight paths (Liu et al. 2022, arXiv:2209.03003): the model predicts velocity."""

    shift_line: tuple[tuple[int, float], tuple[int, float]]
    """Two points (tokens, μ) of the line that the shift s = e^μ follows."""
    resolution_shift_name: str
    prediction_type: str = "velocity"

    def add_noise(self, latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
        """Returns x_σ = (1 − σ) x₀ + σ ε."""
        sigmas = sigmas.view(-1, 1, 1, 1)
        return (1 - sigmas) * latents + sigmas * noise

    def target(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Returns dx_σ/dσ = ε − x₀."""
        return noise - latents

    def resolution_shift(self, tokens: int) -> float:
        """Returns s = e^μ, with μ on the line through the two points."""
        (few, low), (many, high) = self.shift_line
        return math.exp(low + (high - low) * (tokens - few) / (many - few))


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """Returns σ' = sσ / (1 + (s − 1)σ): Esser et al. 2024 (arXiv:2403.03206), equation 23."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)
