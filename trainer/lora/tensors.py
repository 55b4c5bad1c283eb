"""Turns an adapter in a view into a LoRA with our names and back, and checks whether a LoRA belongs to a model.

Shapes: I input width, O output width.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from .inject import Layout, adapted
from .kinds import KINDS, NAME, Kind
from .layers import PREFIX, diffs, kind_of, layers, ranks

log = logging.getLogger(__name__)


def to_lora(view: nn.Module, adapter: str) -> dict[str, Tensor]:
    """Returns a copy of the adapter on the CPU as ComfyUI's LoRA loader reads it. `.alpha` is written wherever there is
    a scale: without it ComfyUI takes 1 as the scale, whatever the rank. For DoRA the live weights must be readable."""
    lora = {}
    with torch.no_grad():
        for name, layer in adapted(view).items():
            for key, value in KINDS[adapter].export(layer).items():
                lora[f"{PREFIX}{name}.{key}"] = value.detach().to("cpu", copy=True).contiguous()
    return lora


def layout_of(lora: dict[str, Tensor]) -> Layout:
    """Returns the ranks and scales of a LoRA's layers, for an adapter that goes on from it. Without an alpha the scale
    is 1."""
    found = ranks(lora)
    return Layout(found, {name: layer["alpha"].item() / found[name] if "alpha" in layer else 1.0
                          for name, layer in layers(lora).items()})


@torch.no_grad()
def from_lora(view: nn.Module, lora: dict[str, Tensor]) -> None:
    """Puts a LoRA into an adapter of the same layout. Changes of norms and biases are left out, and the log says so.
    Raises ValueError if a tensor does not fit."""
    if extra := diffs(lora):
        log.warning("%d changes of norms and biases, such as %s, are left out: only Linears are trained", len(extra),
                    next(iter(extra)))
    targets = adapted(view)
    for name, tensors in layers(lora).items():
        kind = kind_of(tensors)
        for tensor, parameter, value in kind.restore(targets[name], tensors):
            _put(targets[name], f"{name}.{tensor}", parameter, value, kind)


def _put(layer: Any, name: str, parameter: str, value: Tensor, kind: Kind) -> None:
    holder = getattr(layer, parameter)
    held: Any = holder[NAME] if NAME in holder else None
    param: Any = held.weight if isinstance(held, nn.Module) else held
    if param is None or param.shape != value.shape:
        wanted = "no place" if param is None else tuple(param.shape)
        raise ValueError(f"{name} is {tuple(value.shape)} in the LoRA to start from, but this model has {wanted} for "
                         f"it. Start from a LoRA that was trained for this model, and use {kind.shaped_by}.")
    param.copy_(value)


def check_fits(lora: dict[str, Tensor], network: nn.Module) -> None:
    """Raises ValueError if the network has none of the layers of a LoRA with our names at the same widths. ComfyUI's
    loader only skips what does not fit, with a line in the log."""
    modules: dict[str, Any] = dict(network.named_modules())
    widths = {name: (m.in_features, m.out_features) for name, m in modules.items() if hasattr(m, "in_features")}
    wanted = {name: kind_of(layer).widths(layer) for name, layer in layers(lora).items()}
    if any(_same(widths.get(name), pair) for name, pair in wanted.items()):
        return
    raise ValueError(f"This LoRA was trained for another base model: none of its layers ({len(wanted)}), such as "
                     f"{next(iter(wanted))}, is in the model wired in at the same width. Wire in the model that the "
                     "job trains on, or choose another job.")


def _same(widths: tuple[int, int] | None, wanted: tuple[int | None, int]) -> bool:
    return widths is not None and widths[1] == wanted[1] and wanted[0] in (None, widths[0])
