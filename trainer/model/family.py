"""What a model family is: everything that sets one apart from the next, in one bundle.

Each family is filled in by one file of `trainer/comfy/families`. Nothing else knows a family by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .memory import Geometry
from .process import Process


@dataclass(frozen=True, slots=True)
class Layer:
    """A Linear by its name in ComfyUI, which is ours too, and by its names in diffusers. # stands for a block's number.
    """

    ours: str
    theirs: tuple[str, ...]
    """diffusers cuts the rows of some layers into several, which are listed from the first row to the last."""
    rows: tuple[int, ...] = ()
    """How the rows are shared out among them. Empty: all have the same number."""
    swapped: bool = False
    """True: diffusers has the two halves of the rows the other way round."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """Where to start for a kind of LoRA."""

    rank: int
    steps: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Family:
    """A model family. What it is given of ComfyUI's (`base`: a BaseModel, `live`: its diffusion model) it only reads.
    """

    name: str
    """As people call it."""
    architecture: str
    """As ModelSpec names it in a LoRA file."""
    implementation: str
    """The address of the reference code, for the LoRA file."""

    layers: tuple[Layer, ...]
    targets: Mapping[str, str]
    """A choice of `target_modules` → the regular expression that its layers' names match."""
    block_kinds: Mapping[str, str]
    """A kind of block, as people write it in `block_ranks` → the list of modules that has its blocks."""
    examples: Mapping[str, str]
    """Values that show how a setting is written for this family."""

    patch: int
    """Latent pixels along an edge of a token."""
    bucket_step: int
    """Pixels that an edge of a training picture must be a multiple of."""
    caption_tokens: int
    """Tokens of a caption that the model was trained with at most."""
    text_parts: tuple[str, ...]
    """Tensors that a CONDITIONING for it has."""
    presets: Mapping[str, Preset]
    process: Process

    accepts: Callable[[Any], bool]
    """Whether a `base` is of this family."""
    reads: Callable[[Any], bool]
    """Whether a CLIP is made for this family."""
    problems: Callable[[Any, Any, Any], list[str]]
    """What is wrong with a `base`, a CLIP and a VAE that are wired in together: a sentence each."""
    text_problem: Callable[[Any, Mapping[str, Any]], str]
    """What is wrong with an encoded caption for a `live` model, in one sentence; empty if it fits."""
    geometry: Callable[[Any, int], Geometry]
    """The sizes of a `live` model, given the bytes of one value."""
    options: Callable[[nn.Module], dict[str, Any]]
    """The `transformer_options` with which a view runs one forward differentiably."""

    def blocks(self, network: nn.Module) -> list[nn.Module]:
        """The transformer blocks of a view or a live model, in order of execution."""
        return [block for name in self.block_kinds.values() for block in network.get_submodule(name).children()]

    def block_of(self, module: str) -> tuple[str, int] | None:
        """The kind and the place of the block that a module lies in, by the module's name; None if it lies in none."""
        place, *inside = module.split(".", 2)
        kind = next((kind for kind, name in self.block_kinds.items() if name == place), None)
        return (kind, int(inside[0])) if kind and len(inside) == 2 else None

    def tokens(self, latent_pixels: int) -> int:
        """Tokens of a picture of so many latent pixels."""
        return latent_pixels // self.patch**2
