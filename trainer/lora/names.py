"""What FLUX.1's Linears are called: by Black Forest Labs (which ComfyUI and we follow), by kohya and by diffusers."""

from __future__ import annotations

import re
from typing import NamedTuple

LAYERS: dict[str, tuple[str, ...]] = {
    "double_blocks.#.img_attn.qkv": tuple(f"transformer_blocks.#.attn.to_{part}" for part in "qkv"),
    "double_blocks.#.img_attn.proj": ("transformer_blocks.#.attn.to_out.0",),
    "double_blocks.#.img_mlp.0": ("transformer_blocks.#.ff.net.0.proj",),
    "double_blocks.#.img_mlp.2": ("transformer_blocks.#.ff.net.2",),
    "double_blocks.#.img_mod.lin": ("transformer_blocks.#.norm1.linear",),
    "double_blocks.#.txt_attn.qkv": tuple(f"transformer_blocks.#.attn.add_{part}_proj" for part in "qkv"),
    "double_blocks.#.txt_attn.proj": ("transformer_blocks.#.attn.to_add_out",),
    "double_blocks.#.txt_mlp.0": ("transformer_blocks.#.ff_context.net.0.proj",),
    "double_blocks.#.txt_mlp.2": ("transformer_blocks.#.ff_context.net.2",),
    "double_blocks.#.txt_mod.lin": ("transformer_blocks.#.norm1_context.linear",),
    "single_blocks.#.linear1": (*(f"single_transformer_blocks.#.attn.to_{part}" for part in "qkv"),
                                "single_transformer_blocks.#.proj_mlp"),
    "single_blocks.#.linear2": ("single_transformer_blocks.#.proj_out",),
    "single_blocks.#.modulation.lin": ("single_transformer_blocks.#.norm.linear",),
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
"""Our name → diffusers', which cuts the rows of some layers into several. # stands for the block's number."""
SWAPPED = "final_layer.adaLN_modulation.1"
"""The rows of this layer are shift and scale; in diffusers they are scale and shift."""

_KOHYA = {ours.replace(".", "_"): ours for ours in LAYERS}
_DIFFUSERS = {name: (ours, part) for ours, theirs in LAYERS.items() for part, name in enumerate(theirs)}
_NUMBER = re.compile(r"(?<=blocks[._])\d+")


class Place(NamedTuple):
    """Where a tensor of a file belongs."""

    module: str
    """Our layer."""
    part: int | None
    """Which of diffusers' layers for it. None: all of it."""


def kohya_name(module: str) -> str:
    """`double_blocks.0.img_attn.qkv` → `double_blocks_0_img_attn_qkv`."""
    return module.replace(".", "_")


def diffusers_names(module: str) -> tuple[str, ...]:
    """The layers that diffusers has for one of ours, from its first row to its last."""
    pattern, number = _split(module)
    return tuple(name.replace("#", number) for name in LAYERS[pattern])


def shares(module: str) -> list[int]:
    """How the rows of one of our layers are shared out among those: an MLP is four times as wide as the others."""
    return [4 if name.endswith("proj_mlp") else 1 for name in diffusers_names(module)]


def find(name: str) -> Place | None:
    """The place of a layer by any of its names; None if FLUX.1 has none of that name."""
    pattern, number = _split(name)
    ours, part = (pattern, None) if pattern in LAYERS else (_KOHYA.get(pattern), None)
    if ours is None:
        ours, part = _DIFFUSERS.get(pattern, (None, None))
    return Place(ours.replace("#", number), part) if ours else None


def _split(name: str) -> tuple[str, str]:
    """A block's name with # for its number, and the number."""
    match = _NUMBER.search(name)
    return (_NUMBER.sub("#", name, count=1), match[0]) if match else (name, "")
