"""Builds the tiny FLUX.1 that comes with the pack, from ComfyUI's own classes.

The transformer and the VAE are trained (bench/demo_model says how). The text towers are random: a CLIP-L and a T5 of
two layers, drawn from a fixed seed each time, which give every word a direction of its own. A model that knows 1,738
names needs no more."""

from __future__ import annotations

import math
from pathlib import Path

import comfy.model_sampling
import comfy.sd
import comfy.text_encoders.flux
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

WIDTH = 128
"""Hidden width of both text towers."""
TOKENS = 16
"""T5 pads captions to this many tokens, where the large FLUX.1 has 256."""
SEED = 1
SHIFT = 0.47
"""FLUX.1's timestep shift μ at 128 × 128 pixels (64 tokens)."""
CLIP_L = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4, "num_hidden_layers": 2,
          "projection_dim": WIDTH}
T5 = {"d_model": WIDTH, "d_ff": 4 * WIDTH, "d_kv": 32, "num_heads": 4, "num_layers": 2}


def load_demo_model(folder: Path) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """Returns MODEL, CLIP and VAE from `transformer.safetensors` and `vae.safetensors` in `folder`."""
    return load_transformer(folder / "transformer.safetensors"), make_clip(), load_vae(folder / "vae.safetensors")


def load_transformer(path: Path) -> ModelPatcher:
    """Returns the transformer, which samples with the timestep shift for its picture size."""
    model = comfy.sd.load_diffusion_model(str(path))

    class Sampling(comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST):
        pass

    model_sampling = Sampling(model.model.model_config)
    model_sampling.set_parameters(shift=SHIFT)
    model.add_object_patch("model_sampling", model_sampling)
    return model


def load_vae(path: Path) -> comfy.sd.VAE:
    """Returns a VAE of TAESD's shape with 16 channels, as Load VAE would load it."""
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)))


def make_clip() -> comfy.sd.CLIP:
    """Returns CLIP-L and T5 as DualCLIPLoader makes them for flux, with ComfyUI's own tokenizers and weights from
    `SEED`."""

    class Target:
        clip = comfy.text_encoders.flux.flux_clip(dtype_t5=torch.float32)
        tokenizer = comfy.text_encoders.flux.FluxTokenizer
        params: dict = {}

    options = {"clip_l_model_config": CLIP_L, "t5xxl_model_config": T5, "dtype": torch.float32}
    clip = comfy.sd.CLIP(Target, tokenizer_data={"t5xxl_min_length": TOKENS}, model_options=options)
    with torch.inference_mode():
        _fill(clip.cond_stage_model)
    return clip


def _fill(towers: nn.Module) -> None:
    """Draws random weights. Their standard deviation is 1 for embeddings and 1/√inputs for matrices, and half that
    where T5 or an MLP writes to the residual stream, so that a word stays recognisable in any sentence. It is 0.1 for
    positions: CLIP's one vector for a caption then depends on the words, and hardly on their number. Norms are the
    identity, biases 0."""
    draw = torch.Generator().manual_seed(SEED)
    for name, param in sorted(towers.named_parameters()):
        if param.ndim < 2:
            param.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            is_embedding = "embed" in name or "shared" in name
            scale = 0.1 if "position" in name else 1.0 if is_embedding else 1 / math.sqrt(param.shape[1])
            writes_to_stream = name.endswith((".o.weight", ".wo.weight", ".fc2.weight"))
            param.copy_(torch.randn(param.shape, generator=draw) * (scale / 2 if writes_to_stream else scale))
