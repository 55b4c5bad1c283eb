"""Defines LoRA, rsLoRA and DoRA, which are pairs of matrices A and B.

Shapes: I input width, O output width, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...disk.packages import require
from ...model.view import real_weights
from .kind import NAME, Kind, Layer, Restored, Settings, restore

PAIR = ("lora_A.weight", "lora_B.weight")
STARTS = ("start_A", "start_B")
"""What PiSSA takes out of W."""
SCALES = ("dora_scale", "lora_magnitude_vector")
"""The scales of a DoRA: ComfyUI's (O, 1), which it divides by ‖W‖, and PEFT's magnitudes (O,), which it divides by
‖W + ΔW‖. LyCORIS without `wd_on_out` has (1, I), which ComfyUI divides by the ‖W + ΔW‖ of each input."""


def _lora_config(settings: Settings, common: dict[str, Any], ranked: dict[str, Any], use_dora: bool = False) -> Any:
    return require("peft").LoraConfig(r=settings.rank, lora_alpha=settings.rank, lora_dropout=settings.dropout,
                                      use_dora=use_dora, **common, **ranked)


def _dora_config(settings: Settings, common: dict[str, Any], ranked: dict[str, Any]) -> Any:
    return _lora_config(settings, common, ranked, use_dora=True)


def _finish(layer: Any, settings: Settings, rank: int, scale: float) -> None:
    layer.scaling[NAME] = scale
    if settings.init == "orthogonal":
        # Its rows have the length that kaiming_uniform(a = √5) gives them: each value has variance 1/(3 I).
        param = layer.lora_A[NAME].weight
        param.data.copy_(nn.init.orthogonal_(torch.empty(param.shape), gain=1 / math.sqrt(3)))
    if settings.init == "PiSSA":
        layer.pissa_init(NAME, "pissa_niter_4")  # PEFT would do so before the layer is on its device
        for name, matrix in zip(STARTS, (layer.lora_A, layer.lora_B), strict=True):
            param = matrix[NAME].weight
            param.data = param.data.to(layer.base_layer.placeholder.dtype)
            layer.register_buffer(name, param.detach().clone())
    if settings.rank_dropout:
        layer.lora_A[NAME].register_forward_hook(_RankDropout(settings.rank_dropout))


class _RankDropout:
    """A forward hook on A. It drops ranks, different ones for each image, and scales up the rest."""

    def __init__(self, share: float) -> None:
        self._share = share

    def __call__(self, module: nn.Module, _: Any, down: Tensor) -> Tensor:
        if not module.training:
            return down
        shape = (down.shape[0], *[1] * (down.ndim - 2), down.shape[-1])
        kept = torch.rand(shape, device=down.device) >= self._share
        return down * kept / (1 - self._share)


def _matrices(layer: Any) -> tuple[Tensor, Tensor]:
    """Returns A and B of the change. PiSSA (Meng et al. 2024, arXiv:2404.02948) takes its start out of W. Here W is
    frozen and keeps it, so the start is taken off the change: ΔW = s (BA − B₀A₀), which has rank 2R."""
    a, b = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    if hasattr(layer, "start_A"):
        start_a, start_b = _start(layer)
        a, b = torch.cat((a, start_a)), torch.cat((b, start_b), dim=1)
    return a, b


def _start(layer: Any) -> tuple[Tensor, Tensor]:
    """Returns A₀ and −B₀ of a PiSSA."""
    return layer.start_A, -layer.start_B


def _fused(layer: Any) -> Callable[[Tensor], Tensor]:
    """Returns a function that computes what PEFT's LoRA layer computes, in fewer passes over memory."""
    base, scale = layer.base_layer, layer.scaling[NAME]
    a, b = layer.lora_A[NAME], layer.lora_B[NAME]
    beside = partial(_start, layer) if hasattr(layer, "start_A") else None
    return lambda x: base.with_lora(x, a.weight, b.weight, scale, beside)


def _export(layer: Any) -> Layer:
    a, b = _matrices(layer)
    return {"lora_A.weight": a, "lora_B.weight": b, "alpha": torch.tensor(float(layer.scaling[NAME] * a.shape[0]))}


def _export_dora(layer: Any) -> Layer:
    """Returns the tensors of a DoRA. PEFT multiplies by m / ‖W + ΔW‖, ComfyUI by dora_scale / ‖W‖, so dora_scale =
    m ‖W‖ / ‖W + ΔW‖ (O, 1). The magnitude m (O,) itself is for programs that compute as PEFT does."""
    magnitude = layer.lora_magnitude_vector[NAME].weight.float()
    before, after = _norms(layer)
    return _export(layer) | {"dora_scale": (magnitude * before / after)[:, None],
                             "lora_magnitude_vector": magnitude}


def _restore_dora(layer: Any, tensors: Layer) -> Iterator[Restored]:
    """Yields the values of a DoRA's parameters. If a file has `dora_scale` but no magnitudes, they are computed from it
    once A and B are in place."""
    yield from restore(layer, {name: value for name, value in tensors.items() if name != "dora_scale"})
    if "dora_scale" in tensors and "lora_magnitude_vector" not in tensors:
        before, after = _norms(layer)
        yield "dora_scale", "lora_magnitude_vector", tensors["dora_scale"].flatten().to(before) * after / before


def _scale_problem(module: str, layer: Layer) -> str:
    outputs, inputs = len(layer["lora_B.weight"]), layer["lora_A.weight"].shape[1]
    for name, fitting in zip(SCALES, (((outputs, 1), (1, inputs)), ((outputs,),)), strict=True):
        if name in layer and layer[name].shape not in fitting:
            return (f"{module}.{name} is {tuple(layer[name].shape)}, and its layer has {outputs} outputs and {inputs} "
                    f"inputs: {' or '.join(map(str, fitting))} would fit. Get the file again.")
    return ""


def _start_problem(module: str, layer: Layer) -> str:
    scale = layer.get("dora_scale")
    if scale is None or len(scale) == len(layer["lora_B.weight"]):
        return ""
    return (f"{module}.dora_scale has a value for each input, as LyCORIS without wd_on_out writes it. Only DoRAs "
            "with a value for each output can be trained. Start from one that was trained with wd_on_out.")


def _norms(layer: Any) -> tuple[Tensor, Tensor]:
    """Returns ‖W‖ and ‖W + ΔW‖ of each output, (O,)."""
    with real_weights(layer.base_layer):
        weight = layer.base_layer.weight.float()
    delta = layer.lora_B[NAME].weight.float() @ layer.lora_A[NAME].weight.float() * layer.scaling[NAME]
    return weight.norm(dim=1), (weight + delta).norm(dim=1)


LORA = Kind(
    # Hu et al. 2021 (arXiv:2106.09685): h = Wx + s BAx, with B = 0 at the start
    uses=frozenset({"alpha", "lora_plus_ratio", "dropout", "rank_dropout"}), inits=("kaiming", "orthogonal", "PiSSA"),
    inits_from_weights=("PiSSA",), up="lora_B", buffers=STARTS, config=_lora_config, finish=_finish, forward=_fused,
    stored_as="LoRA", tensors=(PAIR,), products=(PAIR,),
    rank=lambda layer: len(layer[PAIR[0]]), widths=lambda layer: (layer[PAIR[0]].shape[1], len(layer[PAIR[1]])),
    export=_export, restore=restore, formats=("ComfyUI", "kohya", "diffusers"))
KINDS = {
    "LoRA": LORA,
    # Kalajdzievski 2023 (arXiv:2312.03732)
    "rsLoRA": replace(LORA, scale=lambda alpha, rank: alpha / math.sqrt(rank),
                      lycoris={"algo": "lora", "rs_lora": "True"}),
    # Liu et al. 2024 (arXiv:2402.09353)
    "DoRA": replace(
        LORA, uses=frozenset({"alpha", "lora_plus_ratio", "dropout"}), inits=("kaiming", "orthogonal"),
        config=_dora_config, forward=None, reads_weights=True, stored_as="DoRA", more=SCALES, marks=SCALES,
        export=_export_dora, restore=_restore_dora, problem=_scale_problem, start_problem=_start_problem,
        # diffusers passes over dora_scale: it is for ComfyUI, which reads these files too and knows no magnitudes
        scales={"ComfyUI": SCALES[:1], "kohya": SCALES[:1], "diffusers": SCALES[::-1]},
        lycoris={"algo": "lora", "dora_wd": "True"},
        not_merged="how far it scales the layer's outputs depends on the model's own weights"),
}
