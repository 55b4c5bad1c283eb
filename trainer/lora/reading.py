"""Reads LoRA files of all programs whose names are known: docs/lora_files.md lists them. "Our names" are ComfyUI's."""

from __future__ import annotations

import itertools
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..disk.text import counted
from ..model.family import Family
from .kinds import Kind, Layer
from .kinds.pair import PAIR
from .layers import DIFFS, PREFIX, STORED, SUFFIXES, kind_of, matrices
from .names import Names, Place, family_of, names_of
from .parts import PARTS, join, rows_problem
from .peft_config import alphas_of
from .values import numbers

log = logging.getLogger(__name__)

Keys = dict[str, str]
"""The end of our name for a tensor of a layer → the tensor's name in the file."""
PREFIXES = re.compile(r"(lora_unet_|lora_transformer_|lycoris_|diffusion_model\.|transformer\.|base_model\.model\.)*")
OTHERS = {"text encoders": ("lora_te", "text_encoder"), "embeddings": ("bundle_emb.",)}
"""What else a file may have → how the names of its tensors begin."""
ALIASES = {
    **{f"{down}weight": PAIR[0] for down in ("lora_down.", "lora.down.", "lora_linear_layer.down.", "lora_A.default.")},
    **{f"{up}weight": PAIR[1] for up in ("lora_up.", "lora.up.", "lora_linear_layer.up.", "lora_B.default.")},
    "lora_A": PAIR[0], "lora_B": PAIR[1],
    "lora_magnitude_vector.weight": "lora_magnitude_vector",
    "lora_magnitude_vector.default.weight": "lora_magnitude_vector",
    "w_norm": "diff",
}
"""How names end in other programs' files → how ours end."""
UNSUPPORTED = {
    r"\.(lora_mid\.weight|hada_t[12]|lokr_t2)": "the middle of a Tucker decomposition",
    r"\.[ab][12]\.weight": "a part of a GLoRA",
    r"\.rescale": "the scale of an OFT's outputs",
    r"\.(set_weight|reshape_weight)": "a new weight or shape instead of a change",
    r"(\.lora_B\.bias|(?<=_norm)\.scale)": "a bias or norm as BFL's control LoRAs have them",
    r"_qkv\..+": "for query, key and value of a layer that has more rows",
    r"[._](bias\.diff|b_norm)": "the change of a bias by another name than .diff_b",
}
"""How names of tensors go on after the layer's, in kinds of LoRA that ComfyUI's loader knows and that are not read here
→ what the tensors are."""
KEY = re.compile(rf"(.+)(?:\.|_(?=lora\.))({'|'.join(map(re.escape, [*ALIASES, *SUFFIXES]))})")


def read(tensors: dict[str, Tensor], families: tuple[Family, ...]) -> dict[str, Tensor]:
    """Returns a LoRA with our names. It may have any of these formats, or the same names behind another prefix or with
    underscores (ai-toolkit's, PEFT's, OneTrainer's, SimpleTuner's, those of ComfyUI's own nodes). ΔW stays the same:
    layers that diffusers has cut are joined, and their ranks add up unless they share their A. A missing alpha is what
    the metadata of a `Lora` say, or else the rank. Types that are only for storage become fp32.

    A DoRA keeps whichever of `dora_scale` and `lora_magnitude_vector` its file has. Changes of norms and biases are
    kept (see `diffs`). Tensors for text encoders and embeddings are left out, and the log says so.

    Raises ValueError, with a tensor's name, for names that belong to none of these families, for layers that are
    incomplete or there twice, for what has no meaning here, and for values that are not finite or say nothing."""
    keys = _without_others(tensors)
    names = names_of(family_of([_bare(match[1]) for key in keys if (match := KEY.fullmatch(key))], families))
    found, changes = _sort(keys, names, families)
    whole = {module: {part: _complete({suffix: (key, tensors[key]) for suffix, key in layer.items()},
                                      Place(module, part), names) for part, layer in parts.items()}
             for module, parts in found.items()}
    _add_alphas([named for parts in whole.values() for named in parts.values()], getattr(tensors, "metadata", {}))
    lora = {f"{PREFIX}{module}.{suffix}": numbers(key, tensors[key])
            for module, layer in changes.items() for suffix, key in layer.items()}
    for module, parts in whole.items():
        ready = {part: layer for part, (_, layer) in parts.items()}
        lora |= {f"{PREFIX}{module}.{suffix}": value for suffix, value in _whole(module, ready, names).items()}
    return lora


def _without_others(tensors: dict[str, Tensor]) -> list[str]:
    """Returns the names of the tensors for the diffusion model, and logs how many others there are. Raises ValueError
    if all are others."""
    others = {what: sum(key.startswith(beginnings) for key in tensors) for what, beginnings in OTHERS.items()}
    if tensors and sum(others.values()) == len(tensors):
        alone = " and ".join(what for what, count in others.items() if count)
        raise ValueError(f"This LoRA is for {alone} alone: none of its {counted(len(tensors), 'tensor')}, such as "
                         f"{next(iter(tensors))}, is for the diffusion model. Choose another one.")
    for what, skipped in others.items():
        if skipped:
            log.warning("%s for %s left out: only the diffusion model is trained", counted(skipped, "tensor"), what)
    return [key for key in tensors if not key.startswith(tuple(itertools.chain(*OTHERS.values())))]


def _sort(keys: Iterable[str], names: Names, families: tuple[Family, ...]) -> tuple[dict[str, dict[int | None, Keys]],
                                                                          dict[str, Keys]]:
    """Returns the tensors of adapters by our layer and its part, and the changes of norms and biases by our layer.
    Raises ValueError for tensors that have no place."""
    found: dict[str, dict[int | None, Keys]] = defaultdict(lambda: defaultdict(dict))
    changes: dict[str, Keys] = defaultdict(dict)
    unknown = []
    for key in keys:
        match = KEY.fullmatch(key)
        place = names.find(_bare(match[1])) if match else None
        if not match or not place:
            if what := _unsupported(key, names):
                raise ValueError(f"{key} is {what}. ComfyUI's Load LoRA knows this kind, but it is not supported here. "
                                 "Put that file into a Load LoRA node, or choose another one.")
            unknown.append(key)
            continue
        suffix = ALIASES.get(match[2], match[2])
        if problem := _problem(suffix, place, names):
            raise ValueError(f"{key} cannot be read: {problem}.")
        layer = changes[place.module] if suffix in DIFFS else found[place.module][place.part]
        if suffix in layer:
            raise ValueError(f"This LoRA has the layer {place.module} twice: {layer[suffix]} and {key}. Choose a file "
                             "that has each layer once.")
        layer[suffix] = key
    _check_names(unknown, bool(found), families)
    return found, changes


def _unsupported(key: str, names: Names) -> str:
    """Returns what a tensor is that ComfyUI's Load LoRA knows and that is not read here; empty for any other."""
    matches = ((re.fullmatch(rf"(.+?){end}", key), what) for end, what in UNSUPPORTED.items())
    return next((what for match, what in matches if match and names.find(_bare(match[1]))), "")


def _problem(suffix: str, place: Place, names: Names) -> str:
    """Returns why a layer cannot have such a tensor; empty if it can."""
    if names.is_norm(place.module) and suffix != "diff":
        return f"{place.module} is a norm, of which only the change as a whole (.diff) is read"
    if suffix == "diff" and not names.is_norm(place.module):
        return ("it is the whole change of a matrix, and no adapter. Put that file into a Load LoRA node, or extract a "
                "LoRA of lower rank")
    if place.part is not None and suffix not in PARTS:
        return (f"it is for a part of {place.module}, or for its rows in another order. Only the parts of a LoRA or a "
                "DoRA can be put together. Put that file into a Load LoRA node")
    return ""


def _check_names(unknown: list[str], any_known: bool, families: tuple[Family, ...]) -> None:
    models, kinds = " or ".join(family.name for family in families), list(STORED)
    known = (f"Known are {', '.join(kinds[:-1])} and {kinds[-1]} for {models}, with the names of ComfyUI "
             "(diffusion_model.…), kohya (lora_unet_…) or diffusers (transformer.…), and those in LiveLoRA's "
             "docs/lora_files.md. Choose such a file.")
    if unknown:
        raise ValueError(f"This LoRA has {counted(len(unknown), 'tensor')} of an unknown kind or layer, such as "
                         f"{', '.join(unknown[:3])}. {known}")
    if not any_known:
        raise ValueError(f"This LoRA has no tensor for a layer of {models}. {known}")


def _bare(name: str) -> str:
    return PREFIXES.sub("", name, count=1)


def _whole(module: str, parts: dict[int | None, Layer], names: Names) -> Layer:
    """Returns our layer, which a file has whole or in diffusers' parts. Raises ValueError if it has both."""
    if None not in parts:
        return join(module, {part: layer for part, layer in parts.items() if part is not None}, names)
    if len(parts) > 1:
        raise ValueError(f"This LoRA has the layer {module} twice, by ComfyUI's and by diffusers' name. Choose a file "
                         "that has each layer once.")
    return parts[None]


def _complete(tensors: dict[str, tuple[str, Tensor]], place: Place, names: Names) -> tuple[str, Layer]:
    """Returns a layer's name in the file, and the layer as ComfyUI reads it, given each tensor with its name in the
    file. It may still be without its alpha. Raises ValueError if it is not exactly one adapter."""
    name = next(match[1] for key, _ in tensors.values() if (match := KEY.fullmatch(key)))
    layer = {suffix: numbers(key, value) for suffix, (key, value) in tensors.items()}
    layer |= {suffix: layer[suffix].flatten(1) for suffix in PAIR if suffix in layer and layer[suffix].ndim > 2}
    kind = kind_of(layer)
    _check_shapes(name, layer, kind)
    if problem := kind.problem(name, layer):
        raise ValueError(problem)
    if problem := rows_problem(*place, kind.widths(layer)[1], names):
        raise ValueError(f"{name} {problem}")
    if not kind.has_alpha(layer):  # alpha says nothing about these
        layer.pop("alpha", None)
    return name, layer


def _add_alphas(layers: list[tuple[str, Layer]], metadata: Mapping[str, str]) -> None:
    """Gives each layer that has none its alpha: what the metadata say, which the log tells, or else the rank. Raises
    ValueError if an alpha is 0."""
    ranks = {name: kind_of(layer).rank(layer) for name, layer in layers if kind_of(layer).has_alpha(layer)}
    missing = {name: layer for name, layer in layers if name in ranks and "alpha" not in layer}
    told = alphas_of(metadata, {_bare(name): rank for name, rank in ranks.items()}) if missing else {}
    if told:
        log.warning("The alpha of this LoRA stands in its metadata alone. It is taken from there, as diffusers does; "
                    "ComfyUI's Load LoRA would take the rank")
    for name, layer in missing.items():
        layer["alpha"] = torch.tensor(float(told.get(_bare(name), ranks[name])))
    for name, layer in layers:
        if name in ranks and not layer["alpha"].float().item():
            raise ValueError(f"{name}.alpha is {layer['alpha'].item():g}, so this LoRA changes nothing there and "
                             "cannot learn. Choose another file.")


def _check_shapes(name: str, layer: Layer, kind: Kind) -> None:
    if not any({*suffixes} == matrices(layer) for suffixes in kind.tensors):
        raise ValueError(f"This LoRA has for the layer {name} the tensors {', '.join(sorted(layer))}, which do not "
                         f"make up a {kind.stored_as}. If tensors are missing, get the file again; else choose one "
                         "without extras.")
    for suffix in sorted(matrices(layer)):
        if layer[suffix].ndim != kind.dimensions:
            raise ValueError(f"{name}.{suffix} has {layer[suffix].ndim} dimensions, where {kind.stored_as} has "
                             f"{kind.dimensions}. Choose another file.")
    for one, other in kind.products:
        if one in layer and layer[one].shape[0] != layer[other].shape[1]:
            raise ValueError(f"This LoRA has for the layer {name} a {one} of {tuple(layer[one].shape)} and a {other} "
                             f"of {tuple(layer[other].shape)}, whose ranks differ. Get the file again.")
    if "alpha" in layer and layer["alpha"].numel() != 1:
        raise ValueError(f"{name}.alpha has {layer['alpha'].numel()} values instead of one. Get the file again.")
