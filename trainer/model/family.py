"""Defines what a model family is: everything that sets one apart from the next, in one bundle.

Each family is filled in by one file of `trainer/comfy/families`. Nothing else knows a family by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .process import Process

FAR_TOO_LONG = 4
"""A text may have so many times as many tokens as the model is made for. ComfyUI encodes any number, but memory grows
with its square: a layer of T5-XXL has 64 numbers for each pair of tokens, in fp32 1 GB for 2048 tokens."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Names a Linear or a norm as ComfyUI does, whose names are ours, and as diffusers does. # stands for a block's
    number."""

    ours: str
    theirs: tuple[str, ...]
    """The names in diffusers, which cuts the rows of some layers into several: from the first row to the last."""
    rows: tuple[int, ...] = ()
    """How the rows are shared out among the layers of diffusers. Empty: all have the same number."""
    swapped: bool = False
    """Whether diffusers has the two halves of the rows the other way round."""
    also: tuple[str, ...] = ()
    """More names of the whole layer that ComfyUI's LoRA loader knows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """Holds the settings with which to start for one kind of LoRA."""

    rank: int
    steps: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Family:
    """Describes a model family. It only reads the objects of ComfyUI that it is given: `base` is a BaseModel, `live` is
    its diffusion model."""

    name: str
    """The name that people use."""
    implementation: str
    """The address of the reference code, for the LoRA file."""

    layers: tuple[Layer, ...]
    """The Linears."""
    norms: tuple[Layer, ...]
    """The norms that have weights."""
    targets: Mapping[str, str]
    """A choice of `target_modules` → the regular expression that the names of its layers match."""
    block_kinds: Mapping[str, str]
    """A kind of block, as people write it in `block_ranks` → the name of the module that holds its blocks."""
    examples: Mapping[str, str]
    """Values that show how a setting is written for this family."""

    patch: int
    """The edge of a token, in latent pixels."""
    bucket_step: int
    """The number of pixels that an edge of a training picture must be a multiple of."""
    caption_tokens: int
    """The longest caption that the model was trained with, in tokens."""
    text_parts: tuple[str, ...]
    """The tensors that a CONDITIONING for this family has."""
    presets: Mapping[str, Preset]
    process: Process

    accepts: Callable[[Any], bool]
    """(base) → whether it is of this family."""
    reads: Callable[[Any], bool]
    """(CLIP) → whether it is made for this family."""
    problems: Callable[[Any, Any, Any], list[str]]
    """(base, CLIP, VAE) that are wired in together → a sentence for everything that is wrong with them."""
    text_problem: Callable[[Any, Mapping[str, Any]], str]
    """(live, encoded caption) → a sentence that says why the caption does not fit the model; empty if it fits."""
    architecture: Callable[[Any], str]
    """(live) → the name that ModelSpec has for a LoRA of this model."""
    options: Callable[[nn.Module], dict[str, Any]]
    """(view) → the `transformer_options` with which the view runs one forward differentiably."""

    def blocks(self, network: nn.Module) -> list[nn.Module]:
        """Returns the transformer blocks of a view or a live model, in order of execution."""
        return [block for name in self.block_kinds.values() for block in network.get_submodule(name).children()]

    def block_of(self, module: str) -> tuple[str, int] | None:
        """Returns the kind and the place of the block that a module lies in, given the module's name; None if it lies
        in no block."""
        place, *inside = module.split(".", 2)
        kind = next((kind for kind, name in self.block_kinds.items() if name == place), None)
        return (kind, int(inside[0])) if kind and len(inside) == 2 else None

    @property
    def most_tokens(self) -> int:
        """Returns the most tokens that a text may have to be encoded."""
        return FAR_TOO_LONG * self.caption_tokens

    def tokens(self, latent_pixels: int) -> int:
        """Returns the number of tokens of a picture with so many latent pixels."""
        return latent_pixels // self.patch**2
