"""Translates the names of a family's layers between ComfyUI, whose names are ours, kohya and diffusers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from ..model.family import Family
from ..model.family import Layer as Named

_NUMBER = re.compile(r"(?<=blocks[._])\d+")


class Place(NamedTuple):
    """Tells where a tensor of a file belongs."""

    module: str
    """The name of our layer."""
    part: int | None
    """The number, from 0, of the tensor's layer among those that diffusers has for ours. None: it is for all of it, row
    by row."""


class Names:
    """Knows the names of one family's Linears and norms."""

    def __init__(self, family: Family) -> None:
        self._layers = {layer.ours: layer for layer in (*family.layers, *family.norms)}
        self._norms = {layer.ours for layer in family.norms}
        self._places = {spelling: Place(layer.ours, part) for layer in self._layers.values()
                        for name, part in _all_names(layer) for spelling in (name, kohya_name(name))}

    def diffusers(self, module: str) -> tuple[str, ...]:
        """Returns the layers that diffusers has for one of ours, from its first row to its last."""
        pattern, number = _split(module)
        return tuple(name.replace("#", number) for name in self._layers[pattern].theirs)

    def shares(self, module: str) -> tuple[int, ...]:
        """Returns how the rows of one of our layers are shared out among the layers that diffusers has for it."""
        layer = self._layers[_split(module)[0]]
        return layer.rows or (1,) * len(layer.theirs)

    def swapped(self, module: str) -> bool:
        """Returns whether diffusers has the two halves of this layer's rows the other way round."""
        return self._layers[_split(module)[0]].swapped

    def is_norm(self, module: str) -> bool:
        """Returns whether one of our layers is a norm."""
        return _split(module)[0] in self._norms

    def find(self, name: str) -> Place | None:
        """Returns the place of a layer, given any of its names; None if the family has no layer of that name."""
        pattern, number = _split(name)
        place = self._places.get(pattern)
        return place._replace(module=place.module.replace("#", number)) if place else None


def _all_names(layer: Named) -> Iterator[tuple[str, int | None]]:
    """Yields every name of a layer, with the part of the layer that it is for."""
    yield from ((name, None) for name in (layer.ours, *layer.also))
    whole = len(layer.theirs) == 1 and not layer.swapped
    yield from ((name, None if whole else part) for part, name in enumerate(layer.theirs))


@lru_cache
def names_of(family: Family) -> Names:
    """Returns the names of a family's layers."""
    return Names(family)


def family_of(layers: Iterable[str], families: tuple[Family, ...]) -> Family:
    """Returns the family that knows the most of these layers by one of their names."""
    found = list(layers)
    return max(families, key=lambda family: sum(names_of(family).find(name) is not None for name in found))


def kohya_name(module: str) -> str:
    """Returns a module's name as kohya writes names: `blocks.0.attn.qkv` → `blocks_0_attn_qkv`."""
    return module.replace(".", "_")


def _split(name: str) -> tuple[str, str]:
    """Returns a layer's name with # for the number of its block, and that number; an empty one outside of blocks."""
    match = _NUMBER.search(name)
    return (_NUMBER.sub("#", name, count=1), match[0]) if match else (name, "")
