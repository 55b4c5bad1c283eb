"""Defines what a LoRA is in memory: a state dict whose tensors have our names, which are ComfyUI's."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection

from torch import Tensor

from .kinds import KINDS, Kind, Layer

PREFIX = "diffusion_model."
DIFFS = ("diff", "diff_b")
"""The ends of the names of changes that are added whole: to a norm's weights, and to the biases of a Linear."""
SUFFIXES = ("alpha", *DIFFS, *dict.fromkeys(name for kind in KINDS.values() for names in (*kind.tensors, kind.more)
                                            for name in names))
"""The ends of all names."""
KEY = re.compile(rf"{re.escape(PREFIX)}(.+)\.({'|'.join(map(re.escape, SUFFIXES))})")
STORED: dict[str, Kind] = {}
"""The kinds of adapter, by the name of the kind in a file."""
for _kind in KINDS.values():
    STORED.setdefault(_kind.stored_as, _kind)
_MARKS = {mark: kind for kind in reversed(STORED.values()) for mark in kind.marks}
_UNMARKED = next(kind for kind in STORED.values() if not kind.marks)


def layers(lora: dict[str, Tensor]) -> dict[str, Layer]:
    """Returns the tensors of each layer of a LoRA with our names, without those in `diffs`."""
    found: dict[str, Layer] = defaultdict(dict)
    for key, value in lora.items():
        match = KEY.fullmatch(key)
        assert match, f"{key} is no name of ours"
        if match[2] not in DIFFS:
            found[match[1]][match[2]] = value
    return dict(found)


def diffs(lora: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the changes of norms and biases that a LoRA with our names has beside its layers, by their names."""
    return {key: value for key, value in lora.items() if key.endswith(tuple(f".{suffix}" for suffix in DIFFS))}


def adapter_kind(lora: dict[str, Tensor]) -> str:
    """Returns the kind of adapter that all layers of a LoRA with our names are of. An rsLoRA counts as a LoRA: in a
    file it is one with a larger alpha. Raises ValueError if the layers are of different kinds."""
    kinds = {kind_of(layer).stored_as: module for module, layer in layers(lora).items()}
    if len(kinds) > 1:
        mixed = " and ".join(f"{kind} (such as {module})" for kind, module in sorted(kinds.items()))
        raise ValueError(f"This file mixes {mixed}. Choose one whose layers are all of one kind.")
    return kinds.popitem()[0]


def kind_of(names: Collection[str]) -> Kind:
    """Returns the kind of adapter that a layer is of, given its tensors by the ends of their names."""
    return next((kind for mark, kind in _MARKS.items() if any(name.startswith(mark) for name in names)), _UNMARKED)


def matrices(layer: Layer) -> set[str]:
    """Returns the ends of the names of those tensors of which a layer's change is the product."""
    return {*layer} - {"alpha", *kind_of(layer).more}


def is_stuck(layer: Layer) -> bool:
    """Returns whether training cannot move any matrix of a layer: two of them are zero, and the gradient of each is a
    product of all others."""
    return sum(not layer[name].any() for name in matrices(layer)) > 1


def ranks(lora: dict[str, Tensor]) -> dict[str, int]:
    """Returns the rank of each layer of a LoRA with our names; for OFT the edge of a block. A LoKr layer of two whole
    matrices has no rank. It gets the longer side of the second matrix: from half of that rank on PEFT keeps it whole.
    """
    return {module: kind_of(layer).rank(layer) for module, layer in layers(lora).items()}
