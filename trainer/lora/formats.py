"""LoRA files in the formats of ComfyUI (with whose names we work), kohya and diffusers: written and read.

Shapes: R rank, I and O a layer's inputs and outputs.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from typing import Literal, get_args

import torch
from torch import Tensor

from .names import SWAPPED, Place, diffusers_names, find, kohya_name, shares

log = logging.getLogger(__name__)

Format = Literal["ComfyUI", "kohya", "diffusers"]
FORMATS: tuple[Format, ...] = get_args(Format)
Kind = Literal["LoRA", "DoRA", "LoHa", "LoKr", "OFT"]
Layer = dict[str, Tensor]
"""A layer's tensors by the end of their names: `lora_A.weight` (R, I), `lora_B.weight` (O, R), `alpha` and so on."""

PREFIX = "diffusion_model."
PREFIXES = re.compile(r"(lora_unet_|diffusion_model\.|transformer\.|base_model\.model\.)*")
TEXT_ENCODERS = ("lora_te", "text_encoder")
SCALES = ("dora_scale", "lora_magnitude_vector")
"""DoRA: what ComfyUI divides by ‖W‖, (O, 1), and PEFT's magnitudes, divided by ‖W + ΔW‖, (O,)."""
PAIR = ("lora_A.weight", "lora_B.weight", "alpha", *SCALES)
NEEDED: dict[Kind, tuple[tuple[str, ...], ...]] = {
    "LoRA": (PAIR[:2],), "DoRA": (PAIR[:2],), "OFT": (("oft_blocks",),),
    "LoHa": (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),),
    "LoKr": tuple((*one, *two) for one in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
                  for two in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))),
}
"""Sets of tensors of which a layer must have one."""
PAIRS: dict[Kind, tuple[tuple[str, str], ...]] = {
    "LoRA": (("lora_A.weight", "lora_B.weight"),), "DoRA": (("lora_A.weight", "lora_B.weight"),),
    "LoHa": (("hada_w1_b", "hada_w1_a"), ("hada_w2_b", "hada_w2_a")),
    "LoKr": (("lokr_w1_b", "lokr_w1_a"), ("lokr_w2_b", "lokr_w2_a")),
}
"""Matrices that are multiplied: the rows of one are the columns of the other."""
SUFFIXES = {*PAIR, *(name for sets in NEEDED.values() for names in sets for name in names)}
ALIASES = {
    "lora_down.weight": "lora_A.weight", "lora_A.default.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight", "lora_B.default.weight": "lora_B.weight",
    "lora_magnitude_vector.weight": "lora_magnitude_vector",
    "lora_magnitude_vector.default.weight": "lora_magnitude_vector",
}
"""Ends of names in other programs' files."""
KEY = re.compile(rf"(.+)\.({'|'.join(map(re.escape, [*ALIASES, *SUFFIXES]))})")


# What a LoRA is


def layers(lora: dict[str, Tensor]) -> dict[str, Layer]:
    """The tensors of each layer of a LoRA with our names."""
    found: dict[str, Layer] = defaultdict(dict)
    for key, value in lora.items():
        match = KEY.fullmatch(key)
        assert match and key.startswith(PREFIX), f"{key} is no name of ours"
        found[match[1].removeprefix(PREFIX)][match[2]] = value
    return dict(found)


def adapter_kind(lora: dict[str, Tensor]) -> Kind:
    """What the layers of a LoRA with our names are; an rsLoRA is a LoRA with a larger alpha. Raises ValueError if they
    differ in that."""
    kinds: set[Kind] = {_kind(layer) for layer in layers(lora).values()}
    if len(kinds) > 1:
        raise ValueError(f"This file mixes {' and '.join(sorted(kinds))}. Choose one whose layers are all of one kind.")
    return kinds.pop()


def ranks(lora: dict[str, Tensor]) -> dict[str, int]:
    """The rank of each layer of a LoRA with our names; for OFT the edge of a block. A LoKr layer of two whole matrices
    has none and is given the longer side of the second, from half of which on PEFT keeps it whole."""
    return {module: _rank(layer) for module, layer in layers(lora).items()}


def _kind(layer: Layer) -> Kind:
    kinds: dict[str, Kind] = {"oft_blocks": "OFT", "hada_w1_a": "LoHa", "lokr_w": "LoKr", "dora_scale": "DoRA",
                              "lora_magnitude_vector": "DoRA"}
    for start, kind in kinds.items():
        if any(name.startswith(start) for name in layer):
            return kind
    return "LoRA"


def _rank(layer: Layer) -> int:
    for name in ("lora_A.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if name in layer:
            return layer[name].shape[0]
    return layer["oft_blocks"].shape[-1] if "oft_blocks" in layer else max(layer["lokr_w2"].shape)


# Writing


def write(lora: dict[str, Tensor], format: Format) -> dict[str, Tensor]:
    """A LoRA as a file of that format has it; no two of its tensors share memory. What is not by our names, as LoRAs of
    ComfyUI's own nodes may be, is read first, but stays as it is for ComfyUI.

    Raises ValueError if the format cannot hold it: diffusers takes LoRA and DoRA alone; and a DoRA needs `dora_scale`
    for ComfyUI but `lora_magnitude_vector` for diffusers, neither of which follows from the other without the model."""
    if format != "ComfyUI":
        return _write_kohya(read(lora)) if format == "kohya" else _write_diffusers(read(lora))
    written = {key: value for key, value in lora.items() if not key.endswith(".lora_magnitude_vector")}
    if len(written) < len(lora):
        _check_dora(read(lora), "dora_scale", format)
    return written


def _check_dora(lora: dict[str, Tensor], needed: str, format: Format) -> None:
    if adapter_kind(lora) == "DoRA" and not all(needed in layer for layer in layers(lora).values()):
        others = "diffusers" if needed == "dora_scale" else "ComfyUI or kohya"
        raise ValueError(f"This DoRA cannot be saved in the format '{format}': it comes from a file without "
                         f"'{needed}'. Choose the format {others}.")


def _write_kohya(lora: dict[str, Tensor]) -> dict[str, Tensor]:
    _check_dora(lora, "dora_scale", "kohya")
    names = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
    return {f"lora_unet_{kohya_name(module)}.{names.get(suffix, suffix)}": value
            for module, layer in layers(lora).items() for suffix, value in layer.items()
            if suffix != "lora_magnitude_vector"}


def _write_diffusers(lora: dict[str, Tensor]) -> dict[str, Tensor]:
    kind = adapter_kind(lora)
    if kind not in ("LoRA", "DoRA"):
        raise ValueError(f"{kind} cannot be saved in the format 'diffusers', which holds LoRA and DoRA alone. Choose "
                         "the format ComfyUI or kohya.")
    _check_dora(lora, "lora_magnitude_vector", "diffusers")
    written = {f"transformer.{name}.{suffix}": value for module, layer in layers(lora).items()
               for name, part in _cut(module, layer).items() for suffix, value in part.items()}
    if len({*ranks(lora).values()}) > 1:
        return written  # with alpha, because diffusers 0.33 takes the first layer's rank for the alpha of all
    return {key: value for key, value in written.items() if not key.endswith(".alpha")}


def _cut(module: str, layer: Layer) -> dict[str, Layer]:
    """Our layer as those that diffusers has for it: the same A, each its rows of B, with the scale in B so that alpha
    is the rank.

    diffusers passes `dora_scale` over. It is for ComfyUI, which reads these files too and knows no magnitudes."""
    names, parts_of, rank = diffusers_names(module), shares(module), _rank(layer)
    a, alpha = layer["lora_A.weight"], torch.tensor(float(rank))
    scaled = {**layer, "lora_B.weight": layer["lora_B.weight"] * (layer["alpha"].item() / rank)}
    parts = {name: {"lora_A.weight": a.clone(), "alpha": alpha.clone()} for name in names}
    for suffix in ("lora_B.weight", *SCALES):
        if suffix in scaled:
            rows = _in_other_order(module, suffix, scaled[suffix])
            unit = len(rows) // sum(parts_of)
            for part, piece in zip(parts.values(), rows.split([unit * share for share in parts_of]), strict=True):
                part[suffix] = piece.clone()
    return parts


def _in_other_order(module: str, suffix: str, rows: Tensor) -> Tensor:
    """Rows as diffusers orders them, or back. ComfyUI puts the ΔW of such a file into its own order, but not its
    `dora_scale`."""
    return torch.cat(rows.chunk(2)[::-1]) if module == SWAPPED and suffix != "dora_scale" else rows


# Reading


def read(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A LoRA of FLUX.1 by our names, from any of these formats and from files that have the same names behind another
    prefix (ai-toolkit's, PEFT's, those of ComfyUI's own nodes). ΔW stays what it was: layers that diffusers has cut are
    joined, at the rank of them all together unless they share their A. A missing alpha is the rank.

    A DoRA keeps whichever of `dora_scale` and `lora_magnitude_vector` its file has. What belongs to text encoders is
    left out, and logged.

    Raises ValueError for names that are none of FLUX.1's and for layers that are incomplete."""
    found: dict[str, dict[int | None, Layer]] = defaultdict(lambda: defaultdict(dict))
    unknown, skipped = [], 0
    for key, value in tensors.items():
        match = KEY.fullmatch(key)
        place = _place(match[1], ALIASES.get(match[2], match[2])) if match else None
        if key.startswith(TEXT_ENCODERS):
            skipped += 1
        elif match is None or place is None:
            unknown.append(key)
        else:
            found[place.module][place.part][ALIASES.get(match[2], match[2])] = value
    if skipped:
        log.warning("%d tensors for text encoders are left out: only FLUX.1's transformer is trained", skipped)
    _check_names(unknown, bool(found))
    return {f"{PREFIX}{module}.{suffix}": value for module, parts in found.items()
            for suffix, value in _whole(module, parts).items()}


def _check_names(unknown: list[str], any_known: bool) -> None:
    known = ("Known are LoRA, DoRA, LoHa, LoKr and OFT for FLUX.1, with the names of ComfyUI (diffusion_model.…), "
             "kohya (lora_unet_…) or diffusers (transformer.…). Choose such a file.")
    if unknown:
        raise ValueError(f"This LoRA has {len(unknown)} tensors of an unknown kind or layer, such as "
                         f"{', '.join(unknown[:3])}. {known}")
    if not any_known:
        raise ValueError(f"This LoRA has no tensor for a layer of FLUX.1's transformer. {known}")


def _place(name: str, suffix: str) -> Place | None:
    place = find(PREFIXES.sub("", name, count=1))
    # the parts of a LoHa, LoKr or OFT cannot be joined
    return None if place and place.part is not None and suffix not in PAIR else place


def _whole(module: str, parts: dict[int | None, Layer]) -> Layer:
    """Our layer, from itself or from diffusers' parts of it."""
    ready = {part: _complete(module, layer) for part, layer in parts.items()}
    if None not in ready:
        return _join(module, {part: layer for part, layer in ready.items() if part is not None})
    if len(ready) > 1:
        raise ValueError(f"This LoRA has the layer {module} twice, by ComfyUI's and by diffusers' name. Choose a file "
                         "that has each layer once.")
    return ready[None]


def _complete(module: str, layer: Layer) -> Layer:
    """With the alpha that ComfyUI takes. Raises ValueError if it is not all of one adapter and nothing else."""
    kind = _kind(layer)
    matrices = {*layer} - {"alpha", *(SCALES if kind == "DoRA" else ())}
    if not any({*names} == matrices for names in NEEDED[kind]):
        raise ValueError(f"This LoRA has of {module} {', '.join(sorted(layer))}, which do not make up a {kind}. If "
                         "tensors are missing, get the file again; else choose one without extras.")
    for one, other in PAIRS.get(kind, ()):
        if one in layer and layer[one].shape[0] != layer[other].shape[1]:
            raise ValueError(f"This LoRA has of {module} a {one} of {tuple(layer[one].shape)} and a {other} of "
                             f"{tuple(layer[other].shape)}, whose ranks differ. Get the file again.")
    if kind == "OFT" and "alpha" in layer and layer["alpha"].item() > 0:
        raise ValueError(f"This OFT limits how far it turns (alpha {layer['alpha'].item():g} at {module}), which is "
                         "not supported. Choose one that was trained without a constraint.")
    if kind == "OFT" or {"lokr_w1", "lokr_w2"} <= matrices:  # alpha says nothing about these
        return {name: value for name, value in layer.items() if name != "alpha"}
    return {"alpha": torch.tensor(float(_rank(layer))), **layer}


def _join(module: str, parts: dict[int, Layer]) -> Layer:
    """diffusers' layers as the one they are in FLUX.1: A one below the other, B block by block, with zeros where a
    layer is missing. If all have the same A, it stays as it is."""
    first, rows_of = next(iter(parts.items())), shares(module)
    unit = len(first[1]["lora_B.weight"]) // rows_of[first[0]]
    downs = [layer["lora_A.weight"] for layer in parts.values()]
    shared = all(a.shape == downs[0].shape and a.equal(downs[0]) for a in downs)
    scales = {part: layer["alpha"].item() / _rank(layer) for part, layer in parts.items()}
    scale = scales[first[0]] if len({*scales.values()}) == 1 else 1.0
    a = downs[0] if shared else torch.cat(downs)
    b, column = a.new_zeros(unit * sum(rows_of), len(a)), 0
    for part, layer in parts.items():
        row, up = unit * sum(rows_of[:part]), layer["lora_B.weight"] * (scales[part] / scale)
        b[row:row + len(up), column:column + up.shape[1]] = up
        column += 0 if shared else up.shape[1]
    joined = {"lora_A.weight": a, "lora_B.weight": _in_other_order(module, "lora_B.weight", b),
              "alpha": torch.tensor(scale * len(a))}
    return joined | _join_scales(module, parts)


def _join_scales(module: str, parts: dict[int, Layer]) -> Layer:
    joined = {}
    for suffix in SCALES:
        rows = [parts[part][suffix] for part in sorted(parts) if suffix in parts[part]]
        if rows and len(rows) < len(shares(module)):
            raise ValueError(f"This DoRA trained only a part of {module}, which cannot be continued here. Choose one "
                             "that trained query, key and value alike.")
        if rows:
            joined[suffix] = _in_other_order(module, suffix, torch.cat(rows))
    return joined
