"""Writes and reads LoRA files in the formats of ComfyUI, kohya and diffusers. "Our names" are ComfyUI's.

Shapes: R rank, I and O a layer's inputs and outputs.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from typing import Literal, get_args

import torch
from torch import Tensor

from ..model.family import Family
from .kinds import KINDS, Kind, Layer
from .kinds.pair import PAIR
from .names import Names, Place, family_of, kohya_name, names_of

log = logging.getLogger(__name__)

Format = Literal["ComfyUI", "kohya", "diffusers"]
FORMATS: tuple[Format, ...] = get_args(Format)
Families = tuple[Family, ...]

PREFIX = "diffusion_model."
PREFIXES = re.compile(r"(lora_unet_|diffusion_model\.|transformer\.|base_model\.model\.)*")
TEXT_ENCODERS = ("lora_te", "text_encoder")
SUFFIXES = {"alpha", *(name for kind in KINDS.values() for names in (*kind.tensors, kind.more) for name in names)}
ALIASES = {
    "lora_down.weight": "lora_A.weight", "lora_A.default.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight", "lora_B.default.weight": "lora_B.weight",
    "lora_magnitude_vector.weight": "lora_magnitude_vector",
    "lora_magnitude_vector.default.weight": "lora_magnitude_vector",
}
"""How names end in other programs' files → how ours end."""
KEY = re.compile(rf"(.+)\.({'|'.join(map(re.escape, [*ALIASES, *SUFFIXES]))})")
STORED: dict[str, Kind] = {}
"""The kinds of adapter, by the name of the kind in a file."""
for _kind in KINDS.values():
    STORED.setdefault(_kind.stored_as, _kind)
_MARKS = {mark: kind for kind in reversed(STORED.values()) for mark in kind.marks}
_UNMARKED = next(kind for kind in STORED.values() if not kind.marks)
SCALES = tuple(dict.fromkeys(name for kind in KINDS.values() for names in kind.scales.values() for name in names))
PARTS = (*PAIR, "alpha", *SCALES)
"""The tensors that can be joined again where diffusers cuts a layer into several."""
ROWS = (PAIR[1], *SCALES)
"""The tensors among PARTS that have a row for each output."""


# What a LoRA is


def layers(lora: dict[str, Tensor]) -> dict[str, Layer]:
    """Returns the tensors of each layer of a LoRA with our names."""
    found: dict[str, Layer] = defaultdict(dict)
    for key, value in lora.items():
        match = KEY.fullmatch(key)
        assert match and key.startswith(PREFIX), f"{key} is no name of ours"
        found[match[1].removeprefix(PREFIX)][match[2]] = value
    return dict(found)


def adapter_kind(lora: dict[str, Tensor]) -> str:
    """Returns the kind of adapter that all layers of a LoRA with our names are of. An rsLoRA counts as a LoRA: in a
    file it is one with a larger alpha. Raises ValueError if the layers are of different kinds."""
    kinds = {kind_of(layer).stored_as for layer in layers(lora).values()}
    if len(kinds) > 1:
        raise ValueError(f"This file mixes {' and '.join(sorted(kinds))}. Choose one whose layers are all of one kind.")
    return kinds.pop()


def kind_of(layer: Layer) -> Kind:
    """Returns the kind of adapter that a layer's tensors are of."""
    return next((kind for mark, kind in _MARKS.items() if any(name.startswith(mark) for name in layer)), _UNMARKED)


def ranks(lora: dict[str, Tensor]) -> dict[str, int]:
    """Returns the rank of each layer of a LoRA with our names; for OFT the edge of a block. A LoKr layer of two whole
    matrices has no rank. It gets the longer side of the second matrix: from half of that rank on PEFT keeps it whole.
    """
    return {module: kind_of(layer).rank(layer) for module, layer in layers(lora).items()}


# Writing


def write(lora: dict[str, Tensor], format: Format, families: Families) -> dict[str, Tensor]:
    """Returns a LoRA as a file of that format has it. No two of its tensors share memory. LoRAs of ComfyUI's own nodes
    may have other names than ours. These are translated first, except for the format ComfyUI, which keeps them.

    Raises ValueError if the format cannot hold the LoRA. diffusers takes only LoRA and DoRA. A DoRA needs `dora_scale`
    for ComfyUI but `lora_magnitude_vector` for diffusers, and one cannot be computed from the other without the model.
    """
    written = _without_foreign_scales(lora, format)
    if format == "ComfyUI":
        if len(written) < len(lora):
            _check_held(read(lora, families), format)
        return written
    ours = read(lora, families)
    _check_held(ours, format)
    ours = _without_foreign_scales(ours, format)
    return _write_kohya(ours) if format == "kohya" else _write_diffusers(
        ours, names_of(family_of(layers(ours), families)))


def _check_held(lora: dict[str, Tensor], format: Format) -> None:
    """Raises ValueError if a LoRA with our names cannot be in a file of that format."""
    name = adapter_kind(lora)
    kind = STORED[name]
    if format not in kind.formats:
        held = [stored for stored, entry in STORED.items() if format in entry.formats]
        raise ValueError(f"{name} cannot be saved in the format '{format}', which holds {' and '.join(held)} alone. "
                         f"Choose the format {' or '.join(kind.formats)}.")
    needed = kind.scales.get(format, ())[:1]
    if not all({*needed} <= layer.keys() for layer in layers(lora).values()):
        others = [other for other, names in kind.scales.items() if names[:1] != needed]
        raise ValueError(f"This {name} cannot be saved in the format '{format}': it comes from a file without "
                         f"'{needed[0]}'. Choose the format {' or '.join(others)}.")


def _without_foreign_scales(lora: dict[str, Tensor], format: Format) -> dict[str, Tensor]:
    foreign = tuple(f".{name}" for kind in STORED.values() if kind.scales
                    for name in SCALES if name not in kind.scales.get(format, ()))
    return {key: value for key, value in lora.items() if not key.endswith(foreign)}


def _write_kohya(lora: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
    return {f"lora_unet_{kohya_name(module)}.{names.get(suffix, suffix)}": value
            for module, layer in layers(lora).items() for suffix, value in layer.items()}


def _write_diffusers(lora: dict[str, Tensor], names: Names) -> dict[str, Tensor]:
    written = {f"transformer.{name}.{suffix}": value for module, layer in layers(lora).items()
               for name, part in _cut(module, layer, names).items() for suffix, value in part.items()}
    if len({*ranks(lora).values()}) > 1:
        return written  # with alpha, because diffusers 0.33 takes the first layer's rank for the alpha of all
    return {key: value for key, value in written.items() if not key.endswith(".alpha")}


def _cut(module: str, layer: Layer, names: Names) -> dict[str, Layer]:
    """Cuts our layer into the layers that diffusers has for it. Each gets the same A and its own rows of B. The scale
    is multiplied into B, so that alpha is the rank."""
    shares, rank = names.shares(module), kind_of(layer).rank(layer)
    a, alpha = layer["lora_A.weight"], torch.tensor(float(rank))
    scaled = {**layer, "lora_B.weight": layer["lora_B.weight"] * (layer["alpha"].item() / rank)}
    parts = {name: {"lora_A.weight": a.clone(), "alpha": alpha.clone()} for name in names.diffusers(module)}
    for suffix in ROWS:
        if suffix in scaled:
            rows = _in_other_order(module, suffix, scaled[suffix], names)
            unit = len(rows) // sum(shares)
            for part, piece in zip(parts.values(), rows.split([unit * share for share in shares]), strict=True):
                part[suffix] = piece.clone()
    return parts


def _in_other_order(module: str, suffix: str, rows: Tensor, names: Names) -> Tensor:
    """Puts rows from our order into that of diffusers, or back. Leaves `dora_scale` as it is: when ComfyUI reads a
    diffusers file, it puts the rows of ΔW into its own order, but not those of `dora_scale`."""
    return torch.cat(rows.chunk(2)[::-1]) if names.swapped(module) and suffix != "dora_scale" else rows


# Reading


def read(tensors: dict[str, Tensor], families: Families) -> dict[str, Tensor]:
    """Returns a LoRA with our names. It may have any of these formats, or the same names behind another prefix
    (ai-toolkit's, PEFT's, those of ComfyUI's own nodes). ΔW stays the same: layers that diffusers has cut are joined,
    and their ranks add up unless they share their A. A missing alpha becomes the rank.

    A DoRA keeps whichever of `dora_scale` and `lora_magnitude_vector` its file has. Tensors for text encoders are left
    out, and the log says so.

    Raises ValueError for names that belong to none of these families and for layers that are incomplete."""
    known = [(key, match) for key in tensors if (match := KEY.fullmatch(key)) and not key.startswith(TEXT_ENCODERS)]
    names = names_of(family_of([_bare(match[1]) for _, match in known], families))
    found: dict[str, dict[int | None, Layer]] = defaultdict(lambda: defaultdict(dict))
    unknown = [key for key in tensors if not KEY.fullmatch(key) and not key.startswith(TEXT_ENCODERS)]
    for key, match in known:
        suffix = ALIASES.get(match[2], match[2])
        if place := _place(match[1], suffix, names):
            found[place.module][place.part][suffix] = tensors[key]
        else:
            unknown.append(key)
    if skipped := sum(key.startswith(TEXT_ENCODERS) for key in tensors):
        log.warning("%d tensors for text encoders are left out: only the diffusion model is trained", skipped)
    _check_names(unknown, bool(found), families)
    return {f"{PREFIX}{module}.{suffix}": value for module, parts in found.items()
            for suffix, value in _whole(module, parts, names).items()}


def _check_names(unknown: list[str], any_known: bool, families: Families) -> None:
    models, kinds = " or ".join(family.name for family in families), list(STORED)
    known = (f"Known are {', '.join(kinds[:-1])} and {kinds[-1]} for {models}, with the names of ComfyUI "
             "(diffusion_model.…), kohya (lora_unet_…) or diffusers (transformer.…). Choose such a file.")
    if unknown:
        raise ValueError(f"This LoRA has {len(unknown)} tensors of an unknown kind or layer, such as "
                         f"{', '.join(unknown[:3])}. {known}")
    if not any_known:
        raise ValueError(f"This LoRA has no tensor for a layer of {models}. {known}")


def _bare(name: str) -> str:
    return PREFIXES.sub("", name, count=1)


def _place(name: str, suffix: str, names: Names) -> Place | None:
    place = names.find(_bare(name))
    # the parts of a LoHa, LoKr or OFT cannot be joined
    return None if place and place.part is not None and suffix not in PARTS else place


def _whole(module: str, parts: dict[int | None, Layer], names: Names) -> Layer:
    """Returns our layer, which a file has whole or in diffusers' parts. Raises ValueError if it has both."""
    ready = {part: _complete(module, layer) for part, layer in parts.items()}
    if None not in ready:
        return _join(module, {part: layer for part, layer in ready.items() if part is not None}, names)
    if len(ready) > 1:
        raise ValueError(f"This LoRA has the layer {module} twice, by ComfyUI's and by diffusers' name. Choose a file "
                         "that has each layer once.")
    return ready[None]


def _complete(module: str, layer: Layer) -> Layer:
    """Returns the layer with the alpha that ComfyUI takes where the file has none. Raises ValueError if its tensors are
    not exactly those of one adapter."""
    kind = kind_of(layer)
    matrices = {*layer} - {"alpha", *kind.more}
    if not any({*names} == matrices for names in kind.tensors):
        raise ValueError(f"This LoRA has for the layer {module} the tensors {', '.join(sorted(layer))}, which do not "
                         f"make up a {kind.stored_as}. If tensors are missing, get the file again; else choose one "
                         "without extras.")
    for one, other in kind.products:
        if one in layer and layer[one].shape[0] != layer[other].shape[1]:
            raise ValueError(f"This LoRA has for the layer {module} a {one} of {tuple(layer[one].shape)} and a {other} "
                             f"of {tuple(layer[other].shape)}, whose ranks differ. Get the file again.")
    if problem := kind.problem(module, layer):
        raise ValueError(problem)
    if not kind.has_alpha(layer):  # alpha says nothing about these
        return {name: value for name, value in layer.items() if name != "alpha"}
    return {"alpha": torch.tensor(float(kind.rank(layer))), **layer}


def _join(module: str, parts: dict[int, Layer], names: Names) -> Layer:
    """Joins diffusers' layers into the one that they are for us: A one below the other, B block by block, with zeros
    where a layer is missing. If all have the same A, it is kept once."""
    first, shares = next(iter(parts.items())), names.shares(module)
    unit = len(first[1]["lora_B.weight"]) // shares[first[0]]
    downs = [layer["lora_A.weight"] for layer in parts.values()]
    shared = all(a.shape == downs[0].shape and a.equal(downs[0]) for a in downs)
    scales = {part: layer["alpha"].item() / len(layer["lora_A.weight"]) for part, layer in parts.items()}
    scale = scales[first[0]] if len({*scales.values()}) == 1 else 1.0
    a = downs[0] if shared else torch.cat(downs)
    b, column = a.new_zeros(unit * sum(shares), len(a)), 0
    for part, layer in parts.items():
        row, up = unit * sum(shares[:part]), layer["lora_B.weight"] * (scales[part] / scale)
        b[row:row + len(up), column:column + up.shape[1]] = up
        column += 0 if shared else up.shape[1]
    joined = {"lora_A.weight": a, "lora_B.weight": _in_other_order(module, "lora_B.weight", b, names),
              "alpha": torch.tensor(scale * len(a))}
    return joined | _join_scales(module, parts, names)


def _join_scales(module: str, parts: dict[int, Layer], names: Names) -> Layer:
    joined = {}
    for suffix in ROWS[1:]:
        rows = [parts[part][suffix] for part in sorted(parts) if suffix in parts[part]]
        if rows and len(rows) < len(names.shares(module)):
            raise ValueError(f"This DoRA trained only a part of {module}, which cannot be continued here. Choose one "
                             "that trained query, key and value alike.")
        if rows:
            joined[suffix] = _in_other_order(module, suffix, torch.cat(rows), names)
    return joined
