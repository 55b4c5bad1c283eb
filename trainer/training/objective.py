"""Defines the objective: which noise levels are trained, and how errors count.

Shapes: B images, C latent channels, H W latent rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..model.process import Process, shift_sigmas
from ..recipe.choices import HuberSchedule
from ..recipe.config import TrainConfig


def normals(count: int, draw: torch.Generator) -> Tensor:
    """Returns independent standard normal samples (count,), fp32: one for each image's noise level."""
    return torch.randn(count, generator=draw)


def stratified_normals(count: int, draw: torch.Generator) -> Tensor:
    """Returns one sample of each of `count` equally probable slices of the standard normal, in random order: (count,),
    fp32.

    Each sample alone is still standard normal, but together they always cover the whole distribution."""
    slices = torch.randperm(count, generator=draw)
    # fp32 draws a 0, the normal's −∞, once in 2²⁴ times, and its numbers are too coarse for the upper tail.
    shares = torch.rand(count, generator=draw, dtype=torch.float64)
    return torch.special.ndtri((slices + shares) / count).float()


def sigmas_of(normals: Tensor, tokens: int, config: TrainConfig, process: Process) -> Tensor:
    """Returns the noise levels in 0…1 that belong to standard normal samples: (B,) → (B,), fp32.

    `sigmoid` and `logit_normal`: Esser et al. 2024 (arXiv:2403.03206), section 3.1. `resolution_shift` moves sigmoid's
    samples towards noise as far as the sampler does for a picture of `tokens` tokens; `fixed_shift` moves them by
    `timestep_shift`."""
    sigmas = torch.sigmoid(normals)
    match config.timestep_sampling:
        case "sigmoid":
            return sigmas
        case "logit_normal":
            return torch.sigmoid(config.timestep_mean + config.timestep_std * normals)
        case "uniform":
            return torch.special.ndtr(normals)
        case "resolution_shift":
            return shift_sigmas(sigmas, process.resolution_shift(tokens))
        case "fixed_shift":
            return shift_sigmas(sigmas, config.timestep_shift)


def huber_threshold(sigmas: Tensor, c: float, schedule: HuberSchedule) -> Tensor:
    """Returns the error c_σ at which pseudo-Huber losses turn from quadratic to linear, for noise levels (B,) → (B,).

    Khrapov et al. 2024 (arXiv:2403.16728) let it fall from 1 at σ = 0, where details are learnt, to c at σ = 1, where
    an outlier in the data does most harm. The schedules are those of sd-scripts: `exponential` is c^σ, `snr` is
    (1 − c) / (1 + n)² + c, n being noise over signal, √((1 − ᾱ) / ᾱ) in a variance-preserving diffusion. In
    x_σ = (1 − σ) x₀ + σ ε it is n = σ / (1 − σ), so that 1 / (1 + n) = 1 − σ."""
    match schedule:
        case "constant":
            return torch.full_like(sigmas, c)
        case "exponential":
            return c ** sigmas
        case "snr":
            return (1 - c) * (1 - sigmas).square() + c


def elementwise_loss(pred: Tensor, target: Tensor, sigmas: Tensor, config: TrainConfig) -> Tensor:
    """Returns the loss of every element: `pred` and `target` (B, C, H, W), noise levels (B,) → (B, C, H, W), fp32.

    `huber` is 2c (√(d² + c²) − c): d² near 0, 2c |d| far from it. `smooth_l1` is the same ÷ c: d² / c, 2 |d|. The
    names and the factor 2 are those of sd-scripts."""
    error = pred.float() - target.float()
    if config.loss == "l2":
        return error.square()
    if config.loss == "l1":
        return error.abs()
    c = huber_threshold(sigmas, config.huber_c, config.huber_schedule).view(-1, 1, 1, 1)
    # √(d² + c²) − c = d² / (√(d² + c²) + c), and the right side loses no digits when d is small.
    smooth_l1 = 2 * error.square() / ((error.square() + c.square()).sqrt() + c)
    return c * smooth_l1 if config.loss == "huber" else smooth_l1


def mask_weights(masks: Tensor, unmasked_weight: float) -> Tensor:
    """Returns weights (B, H, W): 1 where a mask in 0…1 is 1, `unmasked_weight` where it is 0, linear in between."""
    return masks + unmasked_weight * (1 - masks)


def image_losses(loss: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns the mean loss of each image: (B, C, H, W) → (B,).

    With `weights` (B, H, W) it is Σ w·l / (C Σ w): the mean over the masked area, so that an image counts as much with
    a small mask as with a large one."""
    if weights is None:
        return loss.mean((1, 2, 3))
    area = weights.sum((1, 2))
    assert area.device.type != "cpu" or area.all(), "an image without any weight has no mean loss"  # a GPU would wait
    return (loss.mean(1) * weights).sum((1, 2)) / area
