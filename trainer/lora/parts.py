"""Cuts layers into those that diffusers has for them, and joins these again.

Shapes: R rank, I and O a layer's inputs and outputs.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from .kinds import KINDS, Layer
from .kinds.pair import PAIR
from .names import Names

SCALES = tuple(dict.fromkeys(name for kind in KINDS.values() for names in kind.scales.values() for name in names))
PARTS = (*PAIR, "alpha", *SCALES)
"""The tensors that can be joined again where diffusers cuts a layer into several."""
ROWS = (PAIR[1], *SCALES)
"""The tensors among PARTS that have a row for each output."""


def cut(module: str, layer: Layer, names: Names) -> dict[str, Layer]:
    """Cuts our layer into the layers that diffusers has for it. Each gets the same A and its own rows of B. The scale
    is multiplied into B, so that alpha is the rank."""
    a, shares = layer["lora_A.weight"], names.shares(module)
    alpha, rank = torch.tensor(float(len(a))), len(a)
    scaled = {**layer, "lora_B.weight": _scaled(layer["lora_B.weight"], layer["alpha"].item() / rank)}
    parts = {name: {"lora_A.weight": a.clone(), "alpha": alpha.clone()} for name in names.diffusers(module)}
    for suffix in ROWS:
        if suffix in scaled:
            rows = _in_other_order(module, suffix, scaled[suffix], names)
            unit = len(rows) // sum(shares)
            for part, piece in zip(parts.values(), rows.split([unit * share for share in shares]), strict=True):
                part[suffix] = piece.clone()
    return parts


def join(module: str, parts: dict[int, Layer], names: Names) -> Layer:
    """Joins diffusers' layers into the one that they are for us: A one below the other, B block by block, with zeros
    where a layer is missing. If all have the same A, it is kept once.

    Raises ValueError if their sizes do not go together, or if they are a DoRA that cannot be joined."""
    _check_sizes(module, parts, names)
    first, shares = next(iter(parts.items())), names.shares(module)
    unit = len(first[1]["lora_B.weight"]) // shares[first[0]]
    downs = [layer["lora_A.weight"] for layer in parts.values()]
    shared = all(a.shape == downs[0].shape and a.equal(downs[0]) for a in downs)
    scales = {part: layer["alpha"].item() / len(layer["lora_A.weight"]) for part, layer in parts.items()}
    scale = scales[first[0]] if len({*scales.values()}) == 1 else 1.0
    ups = {part: _scaled(layer["lora_B.weight"], scales[part] / scale) for part, layer in parts.items()}
    a = downs[0] if shared else torch.cat(downs)
    dtype = reduce(torch.promote_types, (up.dtype for up in ups.values()))
    b, column = torch.zeros(unit * sum(shares), len(a), dtype=dtype), 0
    for part, up in ups.items():
        row = unit * sum(shares[:part])
        b[row:row + len(up), column:column + up.shape[1]] = up
        column += 0 if shared else up.shape[1]
    joined = {"lora_A.weight": a, "lora_B.weight": _in_other_order(module, "lora_B.weight", b, names),
              "alpha": torch.tensor(scale * len(a))}
    return joined | _join_scales(module, parts, names)


def rows_problem(module: str, part: int | None, rows: int, names: Names) -> str:
    """Returns why our layer, or a part of it, cannot have so many rows; empty if it can."""
    shares = names.shares(module)
    pieces = (sum(shares) if part is None else shares[part]) * (2 if names.swapped(module) else 1)
    return "" if rows % pieces == 0 else (f"has {rows} outputs, which do not divide into the {pieces} equal pieces of "
                                          "such a layer. Get the file again.")


def _check_sizes(module: str, parts: dict[int, Layer], names: Names) -> None:
    theirs, shares = names.diffusers(module), names.shares(module)
    first = next(iter(parts))
    unit, inputs = len(parts[first]["lora_B.weight"]) // shares[first], parts[first]["lora_A.weight"].shape[1]
    for part, layer in parts.items():
        if (rows := len(layer["lora_B.weight"])) != unit * shares[part]:
            raise ValueError(f"{theirs[part]}.lora_B.weight has {rows} rows instead of {unit * shares[part]}, which go "
                             f"with the {unit * shares[first]} of {theirs[first]}.lora_B.weight: both are parts of "
                             f"{module}. Get the file again.")
        if (columns := layer["lora_A.weight"].shape[1]) != inputs:
            raise ValueError(f"{theirs[part]}.lora_A.weight has {columns} columns and {theirs[first]}.lora_A.weight "
                             f"{inputs}, though both are parts of {module}. Get the file again.")


def _scaled(b: Tensor, factor: float) -> Tensor:
    """Returns B times a factor. It is not rounded to half precision, unless it is B itself."""
    return b if factor == 1 else b.float() * factor


def _join_scales(module: str, parts: dict[int, Layer], names: Names) -> Layer:
    theirs, joined = names.diffusers(module), {}
    for suffix in SCALES:
        rows = {part: parts[part][suffix] for part in sorted(parts) if suffix in parts[part]}
        if rows and len(rows) < len(theirs):
            raise ValueError(f"This DoRA has {theirs[next(iter(rows))]}.{suffix}, but trained only a part of {module}. "
                             "Choose one that trained query, key and value alike.")
        across = [part for part, scale in rows.items() if len(scale) < len(parts[part]["lora_B.weight"])]
        if across and len(theirs) > 1:
            raise ValueError(f"{theirs[across[0]]}.{suffix} has a value for each input of a part of {module}. These "
                             "cannot be joined. Choose a DoRA that was trained with LyCORIS' wd_on_out.")
        if rows:
            joined[suffix] = _in_other_order(module, suffix, torch.cat([*rows.values()]), names)
    return joined


def _in_other_order(module: str, suffix: str, rows: Tensor, names: Names) -> Tensor:
    """Puts rows from our order into that of diffusers, or back. Leaves `dora_scale` as it is: when ComfyUI reads a
    diffusers file, it puts the rows of ΔW into its own order, but not those of `dora_scale`."""
    return torch.cat(rows.chunk(2)[::-1]) if names.swapped(module) and suffix != "dora_scale" else rows
