"""Defines what a kind of adapter is: everything in which one differs from the next.

Shapes: I input width, O output width, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

NAME = "default"
"""The name that PEFT has for the one adapter of a view."""
Layer = dict[str, Tensor]
"""A layer's tensors by the end of their names: `lora_A.weight` (R, I), `lora_B.weight` (O, R), `alpha` and so on."""

Restored = tuple[str, str, Tensor]
"""The name of a tensor in a file, the name of the parameter that it belongs to, and the parameter's value."""


class Settings(Protocol):
    """Lists the settings of a recipe that a kind of adapter reads. The recipe says what they mean."""

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
    """Describes a kind of adapter. A *layer* is one of PEFT's layers in a view, a `Layer` holds its tensors in a file.
    """

    # In a recipe

    uses: frozenset[str] = frozenset()
    """The settings of a recipe that have a meaning for this kind, but not for every kind."""
    inits: tuple[str, ...] = ("kaiming",)
    inits_from_weights: tuple[str, ...] = ()
    """Those of `inits` that take the start out of the model's own weights."""
    least_rank: int = 1
    scale: Callable[[float, int], float] = lambda alpha, rank: alpha / rank
    """(alpha, R) → the factor by which the adapter's change is multiplied."""
    rank_problem: Callable[[int, int], str] = lambda rank, outputs: ""
    """(R, O) → why a layer of that width cannot have that rank; empty if it can."""

    # In a view

    config: Callable[[Settings, dict[str, Any], dict[str, Any]], Any]
    """(settings, common, ranked) → PEFT's config. All of PEFT's kinds take the arguments in `common`; only kinds with
    ranks take those in `ranked`."""
    finish: Callable[[Any, Settings, int, float], None]
    """(layer, settings, R, scale): does to a new layer what PEFT does not do."""
    forward: Callable[[Any], Callable[[Tensor], Tensor]] | None = None
    """(layer) → the function that computes its outputs, for layers without dropout. None: PEFT's own forward is used.
    """
    reads_weights: bool = False
    """Whether the adapter computes with the model's own weights."""
    up: str = ""
    """The matrix that LoRA+ trains faster. Empty: there is none."""
    buffers: tuple[str, ...] = ()
    """The buffers of a layer that belong to the adapter as its parameters do."""

    # In a file

    stored_as: str
    """The name of the kind in a file. An rsLoRA is a LoRA there, with a larger alpha."""
    tensors: tuple[tuple[str, ...], ...]
    """The sets of tensors that a layer can consist of. It must have exactly one of them."""
    more: tuple[str, ...] = ()
    """The tensors that a layer may have as well."""
    marks: tuple[str, ...] = ()
    """The beginnings of the names of tensors that only this kind has. Empty: a layer without any mark is of this kind.
    """
    products: tuple[tuple[str, str], ...] = ()
    """Pairs of matrices that are multiplied: the first has as many rows as the second has columns."""
    dimensions: int = 2
    """How many dimensions the tensors have, alpha and `more` aside."""
    has_alpha: Callable[[Collection[str]], bool] = lambda names: True
    """(the ends of the names of a layer's tensors) → whether ComfyUI looks at its alpha."""
    problem: Callable[[str, Layer], str] = lambda module, layer: ""
    """(the layer's name, its tensors) → a sentence that says why a file with it cannot be used; empty if it can."""
    start_problem: Callable[[str, Layer], str] = lambda module, layer: ""
    """(the layer's name, its tensors) → a sentence that says why training cannot go on from it; empty if it can."""
    rank: Callable[[Layer], int]
    widths: Callable[[Layer], tuple[int | None, int]]
    """(I, O) of the Linear that a layer is for. I is None where the layer does not tell."""
    export: Callable[[Any], Layer]
    """(layer) → its tensors by ComfyUI's names, not copied."""
    restore: Callable[[Any, Layer], Iterator[Restored]]
    """(layer, tensors of a file) → the values of the layer's own parameters, one after the other. The caller puts each
    into place before it asks for the next."""
    shaped_by: str = "the recipe that it was trained with"
    """What must be as it was when a file was trained, so that the shapes are the same."""
    formats: tuple[str, ...] = ("ComfyUI", "kohya")
    """The file formats that can hold this kind."""
    scales: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Format → those of `more` that its files have, for kinds where formats differ in this. A layer must have the first
    one. All have a row for each output."""
    lycoris: Mapping[str, str] = field(default_factory=dict)
    """The arguments with which LyCORIS trains it, as sd-scripts notes them. Empty: sd-scripts trains it itself."""
    not_merged: str = ""
    """The reason why adapters of this kind cannot be added up to one adapter. Empty: they can."""


def restore(layer: Any, tensors: Layer) -> Iterator[Restored]:
    """Yields the tensors of a file unchanged, for kinds whose files hold their parameters as they are."""
    yield from ((name, name.removesuffix(".weight"), value) for name, value in tensors.items() if name != "alpha")
