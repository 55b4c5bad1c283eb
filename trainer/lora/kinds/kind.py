"""What a kind of adapter is: everything in which one differs from the next.

Shapes: I input width, O output width, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

NAME = "default"
"""What PEFT calls the one adapter of a view."""
Layer = dict[str, Tensor]
"""A layer's tensors by the end of their names: `lora_A.weight` (R, I), `lora_B.weight` (O, R), `alpha` and so on."""

Restored = tuple[str, str, Tensor]
"""The name of a tensor in a file, that of the parameter it belongs to, and the parameter's value."""


class Settings(Protocol):
    """What an adapter asks of a recipe. The recipe says what they mean."""

    @property
    def rank(self) -> int: ...
    @property
    def init(self) -> str: ...
    @property
    def dropout(self) -> float: ...
    @property
    def rank_dropout(self) -> float: ...
    @property
    def lokr_factor(self) -> int: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of adapter. A *layer* is one of PEFT's layers in a view, `Layer` are its tensors in a file."""

    # In a recipe

    uses: frozenset[str] = frozenset()
    """Settings of a recipe that mean something for it, of those that do not for every kind."""
    inits: tuple[str, ...] = ("kaiming",)
    least_rank: int = 1
    scale: Callable[[float, int], float] = lambda alpha, rank: alpha / rank
    """(alpha, R) → the factor on its change."""
    rank_problem: Callable[[int, int], str] = lambda rank, outputs: ""
    """(R, O) → why a layer of that width cannot have that rank; empty if it can."""

    # In a view

    config: Callable[[Settings, dict[str, Any], dict[str, Any]], Any]
    """PEFT's config. The second argument is what all of PEFT's kinds take, the third what those with ranks take."""
    finish: Callable[[Any, Settings, int, float], None]
    """(layer, settings, R, scale): does what PEFT leaves to us."""
    forward: Callable[[Any, Tensor], Tensor] | None = None
    """(layer, x): how it runs while nothing of it is dropped. None: as PEFT runs it."""
    reads_weights: bool = False
    """Whether it computes with the model's own weights."""

    # In a file

    stored_as: str
    """What its files are called: an rsLoRA is a LoRA with a larger alpha."""
    tensors: tuple[tuple[str, ...], ...]
    """Sets of tensors of which a layer must have one."""
    more: tuple[str, ...] = ()
    """Tensors that may be there as well."""
    marks: tuple[str, ...] = ()
    """How the names of tensors begin that no other kind has. Empty: it is what has no mark."""
    products: tuple[tuple[str, str], ...] = ()
    """Matrices that are multiplied: the rows of one are the columns of the other."""
    has_alpha: Callable[[Mapping[str, Tensor]], bool] = lambda layer: True
    """Whether ComfyUI looks at its alpha."""
    problem: Callable[[str, Layer], str] = lambda module, layer: ""
    """(the layer's name, its tensors) → why a file with it cannot be taken, a sentence; empty if it can."""
    rank: Callable[[Layer], int]
    widths: Callable[[Layer], tuple[int | None, int]]
    """(I, O) of the Linear that a layer is for. I is None where the layer does not tell."""
    export: Callable[[Any], Layer]
    """(layer) → its tensors by ComfyUI's names, not copied."""
    restore: Callable[[Any, Layer], Iterator[Restored]]
    """(layer, tensors of a file) → the values of the layer's own parameters. Each is in place before the next is asked
    for."""
    shaped_by: str = "the recipe as it was then"
    """What a recipe must have in common with that of a file for the shapes to be the same."""
    formats: tuple[str, ...] = ("ComfyUI", "kohya")
    """Those that can hold it."""
    lycoris: Mapping[str, str] = field(default_factory=dict)
    """The arguments with which LyCORIS trains it, as sd-scripts notes them. Empty: sd-scripts trains it itself."""
    not_merged: str = ""
    """Why several of them do not add up to one. Empty: they do."""


def restore(layer: Any, tensors: Layer) -> Iterator[Restored]:
    """For kinds whose files hold their parameters as they are."""
    yield from ((name, name.removesuffix(".weight"), value) for name, value in tensors.items() if name != "alpha")
