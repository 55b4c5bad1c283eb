"""Draws preview pictures with ComfyUI's own sampler, with the same numbers as its KSampler node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management as mm
import comfy.sample
import comfy.samplers
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..data.pictures.buckets import LATENT
from ..model.host import GiveWay, SampleSettings, Text
from ..recipe.seeds import kept_random_state
from .interrupts import translated
from .vae import decode_image

SAMPLERS: list[str] = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS: list[str] = comfy.samplers.KSampler.SCHEDULERS
TRIES = 3


def draw(model: ModelPatcher, vae: comfy.sd.VAE, prompt: Text, negative: Text, settings: SampleSettings,
         give_way: Callable[[], bool]) -> Tensor:
    """Draws a picture (h, w, 3) in 0…1, pixel for pixel as KSampler does on an empty latent. The LoRA is already in
    `model`, so `settings.strength` is ignored.

    `give_way` is called in every sampler step; when it returns True, GiveWay is raised. If somebody takes the model off
    its device, the picture is drawn again. Raises RuntimeError if that happens three times, and Interrupted."""
    failure = None
    for _ in range(TRIES):
        try:
            latents = _latents(model, prompt, negative, settings, give_way)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as err:  # a step fails if its weights leave the device, or for reasons of its own
            if is_loaded(model):
                raise
            failure = err
        else:
            if is_loaded(model):
                return decode_image(vae, latents)
    raise RuntimeError(f"ComfyUI unloaded the model {TRIES} times while this picture was drawn. Unload models and call "
                       "/free less often while a LoRA trains.") from failure


def is_loaded(model: ModelPatcher) -> bool:
    """Returns whether the model is where a load left it, with its own patches. /free and "Unload Models" may take it
    away at any time, and what is computed afterwards lacks its LoRA."""
    patches = model.model.current_weight_patches_uuid  # cleared first; DynamicVRAM keeps it, so ask the list too
    return patches == model.patches_uuid and any(loaded is model for loaded in mm.loaded_models())


def _latents(model: ModelPatcher, prompt: Text, negative: Text, settings: SampleSettings,
             give_way: Callable[[], bool]) -> Tensor:
    def between_steps(*_: Any) -> None:
        if give_way():
            raise GiveWay

    # Samplers seed the global generators, and a prompt must not notice that we drew.
    with torch.inference_mode(), kept_random_state(model.load_device), translated():
        shape = (1, _channels(model), settings.height // LATENT, settings.width // LATENT)
        empty = torch.zeros(shape, device=mm.intermediate_device())
        noise = comfy.sample.prepare_noise(empty, settings.seed)
        return comfy.sample.sample(
            model, noise, settings.steps, settings.cfg, settings.sampler_name, settings.scheduler,
            _conditioning(prompt, settings), _conditioning(negative, settings), empty,
            callback=between_steps, disable_pbar=True, seed=settings.seed)


def _channels(model: ModelPatcher) -> int:
    latent_format: Any = model.get_model_object("latent_format")
    return latent_format.latent_channels


def _conditioning(text: Text, settings: SampleSettings) -> list:
    extra = {name: value for name, value in text.items() if name != "cond"}
    return [[text["cond"], {**extra, "guidance": settings.guidance}]]
