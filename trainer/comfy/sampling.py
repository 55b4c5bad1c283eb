"""Preview pictures by ComfyUI's own sampler, with the same numbers as its KSampler node."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import comfy.model_management as mm
import comfy.sample
import comfy.samplers
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..host import SampleSettings, Text
from .interrupts import translated
from .vae import decode_image

SAMPLERS: list[str] = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS: list[str] = comfy.samplers.KSampler.SCHEDULERS


def draw(model: ModelPatcher, vae: comfy.sd.VAE, prompt: Text, negative: Text, settings: SampleSettings) -> Tensor:
    """A picture (h, w, 3) in 0…1, pixel for pixel that of KSampler on an empty latent. Raises Interrupted."""
    with torch.inference_mode(), _global_rng_restored(), translated():
        shape = (1, _channels(model), settings.height // 8, settings.width // 8)
        empty = torch.zeros(shape, device=mm.intermediate_device())
        noise = comfy.sample.prepare_noise(empty, settings.seed)
        latents = comfy.sample.sample(
            model, noise, settings.steps, settings.cfg, settings.sampler_name, settings.scheduler,
            _conditioning(prompt, settings), _conditioning(negative, settings), empty,
            disable_pbar=True, seed=settings.seed)
    return decode_image(vae, latents)


def _channels(model: ModelPatcher) -> int:
    latent_format: Any = model.get_model_object("latent_format")
    return latent_format.latent_channels


def _conditioning(text: Text, settings: SampleSettings) -> list:
    extra = {name: value for name, value in text.items() if name != "cond"}
    return [[text["cond"], {**extra, "guidance": settings.guidance}]]


@contextlib.contextmanager
def _global_rng_restored() -> Iterator[None]:
    """Samplers seed PyTorch's global generators (`torch.manual_seed`); a prompt must not notice that we drew."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield
