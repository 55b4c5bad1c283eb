"""What a family's Linears are called: by ComfyUI, whose names are ours, by kohya and by diffusers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from ..model.family import Family

_NUMBER = re.compile(r"(?<=blocks[._])\d+")


class Place(NamedTuple):
    """Where a tensor of a file belongs."""

    module: str
    """Our layer."""
    part: int | None
    """Which of diffusers' layers for it. None: all of it."""


class Names:
    """The names of one family's layers."""

    def __init__(self, family: Family) -> None:
        self._layers = {layer.ours: layer for layer in family.layers}
        self._kohya = {kohya_name(ours): ours for ours in self._layers}
        self._diffusers = {name: (layer.ours, part) for layer in family.layers
                           for part, name in enumerate(layer.theirs)}

    def diffusers(self, module: str) -> tuple[str, ...]:
        """The layers that diffusers has for one of ours, from its first row to its last."""
        pattern, number = _split(module)
        return tuple(name.replace("#", number) for name in self._layers[pattern].theirs)

    def shares(self, module: str) -> tuple[int, ...]:
        """How the rows of one of our layers are shared out among those."""
        layer = self._layers[_split(module)[0]]
        return layer.rows or (1,) * len(layer.theirs)

    def swapped(self, module: str) -> bool:
        """Whether diffusers has the two halves of this layer's rows the other way round."""
        return self._layers[_split(module)[0]].swapped

    def find(self, name: str) -> Place | None:
        """The place of a layer by any of its names; None if the family has none of that name."""
        pattern, number = _split(name)
        ours, part = (pattern, None) if pattern in self._layers else (self._kohya.get(pattern), None)
        if ours is None:
            ours, part = self._diffusers.get(pattern, (None, None))
        return Place(ours.replace("#", number), part) if ours else None


@lru_cache
def names_of(family: Family) -> Names:
    """The names of a family's layers."""
    return Names(family)


def family_of(layers: Iterable[str], families: tuple[Family, ...]) -> Family:
    """The family that knows the most of these layers by one of their names."""
    found = list(layers)
    return max(families, key=lambda family: sum(names_of(family).find(name) is not None for name in found))


def kohya_name(module: str) -> str:
    """`blocks.0.attn.qkv` → `blocks_0_attn_qkv`."""
    return module.replace(".", "_")


def _split(name: str) -> tuple[str, str]:
    """A block's name with # for its number, and the number."""
    match = _NUMBER.search(name)
    return (_NUMBER.sub("#", name, count=1), match[0]) if match else (name, "")
