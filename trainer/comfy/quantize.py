"""Makes a MODEL with quantized weights of one that is loaded.

The modules of a loaded model are shared by every MODEL that was made of it and never changed. The new one has modules
of its own, of the kind that ComfyUI makes for a quantized checkpoint. ComfyUI therefore loads, streams, patches and
unloads it like any other."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import comfy.model_base
import comfy.model_management as mm
import comfy.quant_ops
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..disk.packages import require
from ..model.family import Family
from ..model.view import is_linear
from .families import family_of_model
from .host import VERSION
from .weights import fetch

QuantizedTensor: Any = comfy.quant_ops.QuantizedTensor
"""ComfyUI's tensor that is stored packed. Without its package comfy_kitchen it is an empty class."""
ROTATED = 256
"""How many neighbouring inputs ComfyUI's int8 mixes, so that a few large weights do not coarsen all the others
(ConvRot). Layers whose number of inputs is no multiple of it are not mixed."""


class Kind(NamedTuple):
    """Says how weights are quantized."""

    format: str
    """ComfyUI's name for it, in checkpoints."""
    pack: Callable[[Tensor], Any]
    """Turns one weight (O, I) into a quantized tensor."""
    package: str = ""
    """The Python package that does it, if that is not ComfyUI's own."""


def _int8(weight: Tensor) -> Any:
    rotated = weight.shape[1] % ROTATED == 0
    return QuantizedTensor.from_float(weight, "TensorWiseINT8Layout", per_channel=True, convrot=rotated)


def _nf4(weight: Tensor) -> Any:
    from .nf4 import NF4  # where ComfyUI lacks its package for quantized weights, this cannot be imported

    return QuantizedTensor.from_float(weight, NF4)


KINDS = {"int8": Kind("int8_tensorwise", _int8), "nf4": Kind("nf4", _nf4, "bitsandbytes")}
"""A choice of the node → how it is done."""


def check(patcher: ModelPatcher, kind: str) -> Family:
    """Returns the family of the model. Touches no weights.

    Raises ValueError if the model is of no family, or carries what is made of its very modules. Raises RuntimeError if
    ComfyUI is too old or a package is missing."""
    if "int8_tensorwise" not in comfy.quant_ops.QUANT_ALGOS:
        raise RuntimeError("Quantize Model for Training needs ComfyUI 0.27 or newer, this is "
                           f"{VERSION}: it cannot put a LoRA on such weights. Update ComfyUI, or load an fp8 file.")
    for package in filter(None, ("comfy_kitchen", KINDS[kind].package)):
        require(package)
    family = family_of_model(patcher.model)
    hooks = [*patcher.injections, *(hook for group in patcher.wrappers.values() for hook in group.values() if hook),
             *(name for name in patcher.object_patches if name.startswith("diffusion_model"))]
    if hooks:
        raise ValueError("model: another node has hooked into its layers (a compiled model or a bypassed LoRA does "
                         "that). Put Quantize Model for Training before that node.")
    return family


@torch.inference_mode()
def quantize(patcher: ModelPatcher, kind: str, progress: Callable[[int, int], None] = lambda *_: None) -> ModelPatcher:
    """Returns a new MODEL whose Linears inside blocks are quantized, with the LoRAs and settings of the given one.

    Beside the two models it needs room for one weight, in RAM and on the device. `progress(done, total)` is called for
    each module. Raises what `check` raises."""
    family = check(patcher, kind)
    mm.unload_model_and_clones(patcher, all_devices=True)  # then its weights are in RAM, and without its LoRAs
    mm.free_memory(mm.minimum_inference_memory(), patcher.load_device)
    base = _empty(patcher.model)
    live = dict(patcher.model.diffusion_model.named_modules())
    like = torch.empty(0, dtype=patcher.model.get_dtype_inference())
    for place, (name, module) in enumerate(live.items()):
        new = base.diffusion_model.get_submodule(name)
        if is_linear(module):
            packed = KINDS[kind] if family.block_of(name) else None
            _fill_linear(new, module, packed, like, patcher.load_device)
        else:
            for own, value in zip(_values(new), _values(module), strict=True):
                own.copy_(value)
        progress(place + 1, len(live))
    if not mm.is_device_cpu(patcher.offload_device):
        base.to(patcher.offload_device)
    return _clone(patcher, base, kind)


def _empty(base: comfy.model_base.BaseModel) -> comfy.model_base.BaseModel:
    """Returns a model of the same shape, with Linears that have no weights yet, as for a quantized checkpoint."""
    config = type(base.model_config)(base.model_config.unet_config)
    config.set_inference_dtype(base.get_dtype_inference(), base.get_dtype_inference())
    config.quant_config = {"mixed_ops": True}
    return config.get_model({}, "")


def _fill_linear(new: Any, live: Any, kind: Kind | None, like: Tensor, device: torch.device) -> None:
    """Gives a Linear the weight and bias of the live one, packed if `kind` says how."""
    weight, bias, release, _ = fetch(live, like)
    if kind:
        packed = kind.pack(weight.to(device)).to(like.device)
        new.weight = nn.Parameter(packed, requires_grad=False)
        new.quant_format, new.layout_type = kind.format, packed._layout_cls
        # ComfyUI multiplies its own formats as they are, on cards that can
        new._full_precision_mm = kind.format not in comfy.quant_ops.QUANT_ALGOS
    else:
        new.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if bias is not None:
        new.bias.copy_(bias)
    release()


def _values(module: nn.Module) -> itertools.chain[Tensor]:
    return itertools.chain(module.parameters(recurse=False), module.buffers(recurse=False))


def _clone(patcher: ModelPatcher, base: comfy.model_base.BaseModel, kind: str) -> ModelPatcher:
    """Returns a clone of the MODEL over another model."""
    fresh = type(patcher)(base, patcher.load_device, patcher.offload_device)
    clone = patcher.clone(model_override=fresh.get_clone_model_override())
    # It has no parent: ComfyUI would put that in its place when it is gone, and it would keep the parent in memory.
    clone.parent, clone.size, clone.clone_base_uuid = None, 0, fresh.clone_base_uuid
    if patcher.cached_patcher_init:
        clone.cached_patcher_init = (_reload, (patcher.cached_patcher_init, kind))
    return clone


def _reload(init: tuple[Any, ...], kind: str, disable_dynamic: bool = False) -> ModelPatcher:
    """Loads and quantizes the model anew. ComfyUI does so for a clone with weights of its own."""
    load, arguments, *place = init
    loaded = load(*arguments, disable_dynamic=disable_dynamic)
    return quantize(loaded[place[0]] if place else loaded, kind)
