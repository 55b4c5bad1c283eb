"""An adapter in a view ↔ the tensors of a LoRA file, by ComfyUI's names: `diffusion_model.<module>.<tensor>`.

Shapes: I input width, O output width, R rank.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from ..model.view import real_weights
from ..recipe.choices import LORA_LIKE, Adapter
from ..recipe.config import TrainConfig
from .formats import PREFIX, adapter_kind, layers, ranks
from .inject import NAME, Layout, adapted

LYCORIS = {"LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
           "LoKr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")}


def to_lora(view: nn.Module, adapter: Adapter) -> dict[str, Tensor]:
    """A copy of the adapter on the CPU as ComfyUI's LoRA loader reads it. `.alpha` is written wherever there is a
    scale: without it ComfyUI takes 1, whatever the rank. For DoRA the live weights must be readable."""
    lora = {}
    for name, layer in adapted(view).items():
        for key, value in _tensors(layer, adapter).items():
            lora[f"{PREFIX}{name}.{key}"] = value.detach().to("cpu", copy=True).contiguous()
    return lora


@torch.no_grad()
def _tensors(layer: Any, adapter: Adapter) -> dict[str, Tensor]:
    if adapter in LORA_LIKE:
        return _pair(layer) | (_dora(layer) if adapter == "DoRA" else {})
    if adapter == "OFT":
        return {"oft_blocks": _skew(layer.oft_R[NAME])}
    found = {key: getattr(layer, key)[NAME] for key in LYCORIS[adapter] if NAME in getattr(layer, key)}
    scale, rank = layer.scaling[NAME], layer.r[NAME]
    if adapter == "LoKr" and {"lokr_w1", "lokr_w2"} <= {*found}:  # two whole factors: ComfyUI looks at no alpha then
        return {**found, "lokr_w1": found["lokr_w1"] * scale}
    return {**found, "alpha": torch.tensor(float(scale * rank))}


def _pair(layer: Any) -> dict[str, Tensor]:
    a, b = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    if hasattr(layer, "start_A"):  # PiSSA's start is part of the frozen weight, so the file takes it off: rank 2R
        a, b = torch.cat((a, layer.start_A)), torch.cat((b, -layer.start_B), dim=1)
    return {"lora_A.weight": a, "lora_B.weight": b, "alpha": torch.tensor(float(layer.scaling[NAME] * a.shape[0]))}


def _dora(layer: Any) -> dict[str, Tensor]:
    """PEFT multiplies by m / ‖W + ΔW‖, ComfyUI by dora_scale / ‖W‖, so dora_scale = m ‖W‖ / ‖W + ΔW‖ (O, 1). The
    magnitude m (O,) itself is for programs that compute as PEFT does."""
    magnitude = layer.lora_magnitude_vector[NAME].weight.float()
    before, after = _norms(layer)
    return {"dora_scale": (magnitude * before / after)[:, None], "lora_magnitude_vector": magnitude}


def _norms(layer: Any) -> tuple[Tensor, Tensor]:
    """‖W‖ and ‖W + ΔW‖ of each output, (O,)."""
    with real_weights(layer.base_layer):
        weight = layer.base_layer.weight.float()
    delta = layer.lora_B[NAME].weight.float() @ layer.lora_A[NAME].weight.float() * layer.scaling[NAME]
    return weight.norm(dim=1), (weight + delta).norm(dim=1)


def _skew(rotation: Any) -> Tensor:
    """ComfyUI turns by (I + Q)(I − Q)⁻¹ with Q = blocks − blocksᵀ, PEFT by (I − S)(I + S)⁻¹: Q = −S. (O/b, b, b)."""
    vector, edge = rotation.weight.float(), rotation.block_size
    blocks = vector.new_zeros(len(vector), edge, edge)
    rows, columns = torch.triu_indices(edge, edge, 1)
    blocks[:, rows, columns] = -vector
    return blocks


OWN = ("init", "alpha", "target_modules", "target_regex", "block_ranks")
"""Fields of a recipe that a LoRA to start from takes the place of; and `rank`, which every recipe has."""


def layout_of(lora: dict[str, Tensor]) -> Layout:
    """Ranks and scales of a LoRA's layers, for an adapter that goes on from it. Without an alpha the scale is 1."""
    found = ranks(lora)
    return Layout(found, {name: layer["alpha"].item() / found[name] if "alpha" in layer else 1.0
                          for name, layer in layers(lora).items()})


@torch.no_grad()
def from_lora(view: nn.Module, lora: dict[str, Tensor]) -> None:
    """Puts a LoRA into an adapter of the same layout. Raises ValueError if a tensor does not fit."""
    targets = adapted(view)
    for name, tensors in layers(lora).items():
        layer = targets[name]
        for kind, value in tensors.items():
            if kind not in ("alpha", "dora_scale"):
                _put(layer, f"{name}.{kind}", kind, value)
        if "dora_scale" in tensors and "lora_magnitude_vector" not in tensors:
            before, after = _norms(layer)
            scale = tensors["dora_scale"].flatten().to(before)
            _put(layer, f"{name}.dora_scale", "lora_magnitude_vector", scale * after / before)


def _put(layer: Any, name: str, kind: str, value: Tensor) -> None:
    kind = kind.removesuffix(".weight")
    if kind == "oft_blocks":  # the other way round of `_skew`
        rows, columns = torch.triu_indices(value.shape[-1], value.shape[-1], 1)
        kind, value = "oft_R", (value.transpose(1, 2) - value)[:, rows, columns]
    holder = getattr(layer, kind)
    held: Any = holder[NAME] if NAME in holder else None
    param: Any = held.weight if isinstance(held, nn.Module) else held
    if param is None or param.shape != value.shape:
        wanted = "no place" if param is None else tuple(param.shape)
        advice = "lokr_factor and rank as they were then" if "lokr" in kind else "the recipe as it was then"
        raise ValueError(f"{name} is {tuple(value.shape)} in the LoRA to start from, and {wanted} for it in this "
                         f"model. Start from a LoRA that was trained for it, with {advice}.")
    param.copy_(value)


def check_start(lora: dict[str, Tensor], config: TrainConfig, linears: set[str]) -> None:
    """Raises ValueError if a run cannot go on from this LoRA, whose scales and ranks will take the recipe's place."""
    kind, wanted = adapter_kind(lora), "LoRA" if config.adapter == "rsLoRA" else config.adapter
    problems = []
    if kind != wanted:
        problems.append(f"Its kind is {kind}, and the recipe's adapter is {config.adapter}. Set adapter to {kind}.")
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in OWN and value != field.default:
            problems.append(f"It brings its own values, layers, ranks and scales, so {field.name} ({value}) has no "
                            f"effect. Set it back to {field.default!r}.")
    if unknown := sorted({*layers(lora)} - linears):
        problems.append(f"{len(unknown)} of its modules are not in this model: {', '.join(unknown[:3])}.")
    if problems:
        raise ValueError("Training cannot start from this LoRA:\n" + "\n".join(f"- {p}" for p in problems))
