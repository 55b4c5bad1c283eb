"""What can be trained: refused with one clear sentence before a weight is touched."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.text_encoders.flux


def check(model: Any, clip: Any, vae: Any) -> None:
    """Raises ValueError, naming every input that does not fit."""
    problems = _check_model(model)
    if not problems:
        problems = [*_check_clip(model.model, clip), *_check_vae(model.model, vae)]
    if problems:
        raise ValueError("\n".join(problems))


def _check_model(model: Any) -> list[str]:
    base = model.model
    if type(base) is not comfy.model_base.Flux:
        kind = getattr(getattr(base, "model_type", None), "name", "unknown")
        return [f"model: LoRA Train trains FLUX.1 models, this one is {type(base).__name__} ({kind}). Load a FLUX.1 "
                "model, for example flux1-dev, with Load Diffusion Model."]
    channels = base.diffusion_model.in_channels, base.diffusion_model.out_channels
    if channels[0] != channels[1]:
        return [f"model: this FLUX.1 variant takes extra image channels ({channels[0]} in, {channels[1]} out: a fill, "
                "depth or canny model). Load a plain text-to-image FLUX.1 model."]
    return []


def _check_clip(base: comfy.model_base.Flux, clip: Any) -> list[str]:
    encoder = clip.cond_stage_model
    if not isinstance(encoder, comfy.text_encoders.flux.FluxClipModel):
        return [f"clip: FLUX.1 needs CLIP-L and T5-XXL together, this is {type(encoder).__name__}. Load both with "
                "DualCLIPLoader, type flux."]
    live: Any = base.diffusion_model
    needed = live.txt_in.in_features, live.vector_in.in_layer.in_features
    given = encoder.t5xxl.transformer.get_input_embeddings(), encoder.clip_l.transformer.get_input_embeddings()
    widths = tuple(embedding.embedding_dim for embedding in given)
    if widths != needed:
        return [f"clip: this model was trained with text encoders of width {needed[0]} (T5) and {needed[1]} (CLIP-L), "
                f"these have {widths[0]} and {widths[1]}. Use the CLIP that belongs to the model."]
    return []


def _check_vae(base: comfy.model_base.Flux, vae: Any) -> list[str]:
    needed = base.latent_format.latent_channels, base.latent_format.latent_dimensions
    given = vae.latent_channels, vae.latent_dim
    if given != needed or vae.downscale_ratio != 8:
        return [f"vae: FLUX.1 needs its own VAE with {needed[0]} latent channels, this one has {given[0]} (and "
                f"{given[1]} dimensions). Load ae.safetensors with Load VAE."]
    return []
