"""Describes FLUX.1: dev, Krea and schnell, text to image. Everything that LiveLoRA knows about it is here.

Shapes: B images, H heads, L tokens, D width of a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.ldm.flux.math
import comfy.ldm.modules.attention
import comfy.model_base
import comfy.text_encoders.flux
import torch
from torch import Tensor, nn

from ...model.family import Family, Layer, Preset
from ...model.functions import exactly
from ...model.process import Flow

LAYERS = (
    Layer("double_blocks.#.img_attn.qkv", tuple(f"transformer_blocks.#.attn.to_{part}" for part in "qkv")),
    Layer("double_blocks.#.img_attn.proj", ("transformer_blocks.#.attn.to_out.0",)),
    Layer("double_blocks.#.img_mlp.0", ("transformer_blocks.#.ff.net.0.proj",),
          also=("transformer_blocks.#.ff.linear_in",)),
    Layer("double_blocks.#.img_mlp.2", ("transformer_blocks.#.ff.net.2",),
          also=("transformer_blocks.#.ff.linear_out",)),
    Layer("double_blocks.#.img_mod.lin", ("transformer_blocks.#.norm1.linear",)),
    Layer("double_blocks.#.txt_attn.qkv", tuple(f"transformer_blocks.#.attn.add_{part}_proj" for part in "qkv")),
    Layer("double_blocks.#.txt_attn.proj", ("transformer_blocks.#.attn.to_add_out",)),
    Layer("double_blocks.#.txt_mlp.0", ("transformer_blocks.#.ff_context.net.0.proj",),
          also=("transformer_blocks.#.ff_context.linear_in",)),
    Layer("double_blocks.#.txt_mlp.2", ("transformer_blocks.#.ff_context.net.2",),
          also=("transformer_blocks.#.ff_context.linear_out",)),
    Layer("double_blocks.#.txt_mod.lin", ("transformer_blocks.#.norm1_context.linear",)),
    Layer("single_blocks.#.linear1", (*(f"single_transformer_blocks.#.attn.to_{part}" for part in "qkv"),
                                      "single_transformer_blocks.#.proj_mlp"), rows=(1, 1, 1, 4),
          also=("single_transformer_blocks.#.attn.to_qkv_mlp_proj",)),
    Layer("single_blocks.#.linear2", ("single_transformer_blocks.#.proj_out",),
          also=("single_transformer_blocks.#.attn.to_out",)),
    Layer("single_blocks.#.modulation.lin", ("single_transformer_blocks.#.norm.linear",)),
    Layer("img_in", ("x_embedder",)),
    Layer("txt_in", ("context_embedder",)),
    Layer("time_in.in_layer", ("time_text_embed.timestep_embedder.linear_1",)),
    Layer("time_in.out_layer", ("time_text_embed.timestep_embedder.linear_2",)),
    Layer("vector_in.in_layer", ("time_text_embed.text_embedder.linear_1",)),
    Layer("vector_in.out_layer", ("time_text_embed.text_embedder.linear_2",)),
    Layer("guidance_in.in_layer", ("time_text_embed.guidance_embedder.linear_1",)),
    Layer("guidance_in.out_layer", ("time_text_embed.guidance_embedder.linear_2",)),
    Layer("final_layer.linear", ("proj_out",)),
    # Its rows are shift and scale; in diffusers they are scale and shift.
    Layer("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped=True),
)
NORMS = (
    *(Layer(f"double_blocks.#.{ours}_attn.norm.{kind}_norm", (f"transformer_blocks.#.attn.norm_{theirs}{kind[0]}",))
      for ours, theirs in (("img", ""), ("txt", "added_")) for kind in ("query", "key")),
    *(Layer(f"single_blocks.#.norm.{kind}_norm", (f"single_transformer_blocks.#.attn.norm_{kind[0]}",))
      for kind in ("query", "key")),
)
BLOCK = r"(double_blocks|single_blocks)\.\d+\."
TARGETS = {
    "all": BLOCK + ".*",
    "attention and mlp": BLOCK + r"(img_attn|txt_attn|img_mlp|txt_mlp|linear[12]).*",
    "attention": BLOCK + r"((img_attn|txt_attn)\..*|linear[12])",
    "style": r"single_blocks\.[123]\d\..*",
    "character": r"single_blocks\.(7|12|16|20)\.linear2",
}
"""The choices of `target_modules`. A single block's linear1 and linear2 hold its attention and its MLP together.

`character`: the four layers that practice found to be enough for a likeness (TheLastBen's 7 and 20, cited by
ai-toolkit's README; all four in Replicate's flux-dev-lora-trainer). `style`: SplitFlux (arXiv:2511.15258) finds content
in the first ten single blocks and style in the later ones."""
EXAMPLES = {"model": "flux1-dev", "target_regex": r"double_blocks\.\d+\.img_attn\..*",
            "block_ranks": "double 0-9: 8, single: 32", "block_learning_rates": "double: 0.5, single 20-37: 2"}

LEAST_TOKENS = 256
"""ComfyUI pads captions for T5 to at least so many tokens."""


class _Rotate(torch.autograd.Function):
    """Turns each pair of values in queries and keys (B, H, L, D) by the angle of its token. Nothing of them is kept,
    because gradients are turned back by the same angles."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
        ctx.rotation = rotation
        return _turned(q, k, rotation)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        there = ctx.rotation  # it is the same for all heads, so that turning it round takes next to no time
        back = there.conj_physical() if there.is_complex() else there.mT.contiguous()
        return *_turned(grads[0], grads[1], back), None


def _turned(q: Tensor, k: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
    """Returns queries and keys turned by complex numbers (B, 1, L, D/2), or by matrices (B, 1, L, D/2, 2, 2) with
    ComfyUI's own kernel."""
    if not rotation.is_complex():
        return comfy.ldm.flux.math.apply_rope(q.contiguous(), k.contiguous(), rotation)
    return _turned_as_numbers(q, rotation), _turned_as_numbers(k, rotation)


def _turned_as_numbers(x: Tensor, rotation: Tensor) -> Tensor:
    exact = exactly(x.dtype)
    values = x.to(exact) if x.stride(-1) == 1 else x.to(exact).contiguous()
    return (values.view(exact.to_complex()) * rotation).view(exact).to(x.dtype)


class RotaryAttention:
    """Computes attention with rotary positions (Su et al. 2021, arXiv:2104.09864) differentiably, for one forward and
    its recomputation. It keeps the positions of that forward's tokens.

    ComfyUI rotates queries and keys with a kernel that has no backward, unless a switch of the whole process selects a
    slow one. So the positions are taken away before the blocks see them, through ComfyUI's hook "post_input", and the
    rotation is made here."""

    def __init__(self, embed: nn.Module) -> None:
        """`embed` is the model's own module, which turns ids (B, L, axes) into matrices (B, 1, L, D/2, 2, 2)."""
        self._embed = embed

    def options(self) -> dict[str, Any]:
        """Returns what the forward takes as `transformer_options`."""
        return {"patches": {"post_input": [self._take_positions]}, "optimized_attention_override": self._attend}

    def _take_positions(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self._rotation = rotation_of(self._embed(torch.cat((inputs["txt_ids"], inputs["img_ids"]), dim=1)))
        return {**inputs, "img_ids": None}

    def _attend(self, _, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Runs PyTorch's attention on the rotated queries and keys. The other kinds of attention have no backward."""
        q, k = _Rotate.apply(q, k, self._rotation)
        return comfy.ldm.modules.attention.attention_pytorch(q, k, v, *args, **kwargs)


def rotation_of(matrices: Tensor) -> Tensor:
    """Returns the rotation that matrices (B, 1, L, D/2, 2, 2) stand for, as `_turned` takes it. CUDA devices have a
    kernel for matrices that passes over q and k once; elsewhere a complex product is the fastest."""
    if matrices.is_cuda:
        return matrices
    return torch.complex(matrices[..., 0, 0].contiguous(), matrices[..., 1, 0].contiguous())


def _options(view: nn.Module) -> dict[str, Any]:
    return RotaryAttention(view.get_submodule("pe_embedder")).options()


def _blank_text(live: Any, tokens: int) -> dict[str, Any]:
    wide, pooled = _text_widths(live)
    return {"cond": torch.empty(1, max(LEAST_TOKENS, tokens), wide, device="meta"),
            "pooled_output": torch.empty(1, pooled, device="meta")}


def _architecture(live: Any) -> str:
    """Returns ModelSpec's name. Krea has the very layers of dev; schnell alone has none for guidance."""
    return "flux-1-dev/lora" if live.params.guidance_embed else "flux-1-schnell/lora"


def _accepts(base: Any) -> bool:
    return type(base) is comfy.model_base.Flux


def _reads(clip: Any) -> bool:
    return isinstance(clip.cond_stage_model, comfy.text_encoders.flux.FluxClipModel)


def _problems(base: Any, clip: Any, vae: Any) -> list[str]:
    """Returns a sentence for every input that does not fit. If the model does not fit, nothing else is said."""
    live = base.diffusion_model
    if live.vector_in is None:
        return ["model: this one is built like FLUX.1 but takes no CLIP-L (Ovis-Image is such a model). Load a FLUX.1 "
                f"model, for example {EXAMPLES['model']}."]
    channels = live.in_channels // live.patch_size**2, live.out_channels // live.patch_size**2
    if channels[0] != channels[1]:
        return [f"model: this FLUX.1 variant takes extra image channels ({channels[0]} in, {channels[1]} out: a fill, "
                "depth or canny model). Load a plain text-to-image FLUX.1 model."]
    return [*_clip_problems(base, clip), *_vae_problems(base, vae)]


def _clip_problems(base: Any, clip: Any) -> list[str]:
    encoder = clip.cond_stage_model
    if not _reads(clip):
        return [f"clip: FLUX.1 needs CLIP-L and T5-XXL together, this is {type(encoder).__name__}. Load both with "
                "DualCLIPLoader, type flux."]
    needed = _text_widths(base.diffusion_model)
    given = encoder.t5xxl.transformer.get_input_embeddings(), encoder.clip_l.transformer.get_input_embeddings()
    widths = tuple(embedding.embedding_dim for embedding in given)
    if widths != needed:
        return [f"clip: this model was trained with text encoders of width {needed[0]} (T5) and {needed[1]} (CLIP-L), "
                f"these have {widths[0]} and {widths[1]}. Use the CLIP that belongs to the model."]
    return []


def _vae_problems(base: Any, vae: Any) -> list[str]:
    needed = base.latent_format.latent_channels, base.latent_format.latent_dimensions
    given = vae.latent_channels, vae.latent_dim
    if given != needed or vae.downscale_ratio != 8:
        return [f"vae: FLUX.1 needs its own VAE with {needed[0]} latent channels, this one has {given[0]} (and "
                f"{given[1]} dimensions). Load ae.safetensors with Load VAE."]
    return []


def _text_problem(live: Any, text: Mapping[str, Any]) -> str:
    wanted, pooled = _text_widths(live), text.get("pooled_output")
    found = text["cond"].shape[-1], 0 if pooled is None else pooled.shape[-1]
    if found == wanted:
        return ""
    return (f"The dataset's conditioning has the widths {found[0]} and {found[1]}, and the model takes {wanted[0]} "
            f"(T5) and {wanted[1]} (CLIP-L). Encode the captions with the CLIP that belongs to the model.")


def _text_widths(live: Any) -> tuple[int, int]:
    return live.txt_in.in_features, live.vector_in.in_layer.in_features


FLUX1 = Family(
    name="FLUX.1", implementation="https://github.com/black-forest-labs/flux",
    layers=LAYERS, norms=NORMS, targets=TARGETS, block_kinds={"double": "double_blocks", "single": "single_blocks"},
    examples=EXAMPLES,
    patch=2, bucket_step=16,  # 8 pixels for a latent, 2 latents for a token
    caption_tokens=512,  # black-forest-labs/flux, `load_t5`; ComfyUI encodes longer texts all the same
    text_parts=("cond", "pooled_output"),
    presets={
        "character": Preset(rank=16, steps=1200, learning_rate=1e-4),
        "style": Preset(rank=32, steps=2500, learning_rate=1e-4),
        "concept": Preset(rank=48, steps=2000, learning_rate=1e-4),
    },
    # The line is that of BFL's reference sampler (black-forest-labs/flux, `sampling.get_lin_function`).
    process=Flow(shift_line=((256, 0.5), (4096, 1.15)), resolution_shift_name="flux_shift"),
    accepts=_accepts, reads=_reads, problems=_problems, text_problem=_text_problem, blank_text=_blank_text,
    architecture=_architecture,
    options=_options)
