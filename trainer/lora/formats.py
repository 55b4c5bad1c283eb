"""Writes LoRA files in the formats of ComfyUI, kohya and diffusers."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from ..model.family import Family
from .layers import PREFIX, STORED, adapter_kind, diffs, layers, ranks
from .names import Names, family_of, kohya_name, names_of
from .parts import SCALES, cut
from .reading import read

Format = Literal["ComfyUI", "kohya", "diffusers"]
FORMATS: tuple[Format, ...] = get_args(Format)
Families = tuple[Family, ...]


def write(lora: dict[str, Tensor], format: Format, families: Families) -> dict[str, Tensor]:
    """Returns a LoRA as a file of that format has it. No two of its tensors share memory. LoRAs of ComfyUI's own nodes
    may have other names than ours. These are translated first, except for the format ComfyUI, which keeps them.

    Raises ValueError if the format cannot hold the LoRA. diffusers takes only LoRA and DoRA, without changes of norms
    and biases. A DoRA needs `dora_scale` for ComfyUI but `lora_magnitude_vector` for diffusers, and one cannot be
    computed from the other without the model."""
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
    if format == "diffusers" and (extra := diffs(lora)):
        raise ValueError(f"The format 'diffusers' cannot hold changes of norms and biases, and this LoRA has "
                         f"{len(extra)}, such as {next(iter(extra))}. Choose the format ComfyUI or kohya.")
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
    split = ((*key.removeprefix(PREFIX).rsplit(".", 1), value) for key, value in diffs(lora).items())
    return {f"lora_unet_{kohya_name(module)}.{names.get(suffix, suffix)}": value for module, suffix, value in (
        *((module, *item) for module, layer in layers(lora).items() for item in layer.items()), *split)}


def _write_diffusers(lora: dict[str, Tensor], names: Names) -> dict[str, Tensor]:
    written = {f"transformer.{name}.{suffix}": value for module, layer in layers(lora).items()
               for name, part in cut(module, layer, names).items() for suffix, value in part.items()}
    if len({*ranks(lora).values()}) > 1:
        return written  # with alpha, because diffusers 0.33 takes the first layer's rank for the alpha of all
    return {key: value for key, value in written.items() if not key.endswith(".alpha")}
