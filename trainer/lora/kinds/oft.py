"""Defines OFT, which rotates a layer's outputs.

Shapes: O output width, b edge of a rotated block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...disk.packages import require
from ...model.view import FrozenLinear
from .kind import NAME, Kind, Layer, Restored, Settings


def _oft_config(settings: Settings, common: dict[str, Any], ranked: dict[str, Any]) -> Any:
    return require("peft").OFTConfig(r=0, oft_block_size=settings.rank, use_cayley_neumann=False, **common)


def _turn_outputs(layer: Any, settings: Settings, rank: int, scale: float) -> None:
    """Replaces PEFT's rotation, which is for the layer's inputs, by one for its outputs. At the start it turns nothing.
    """
    base: FrozenLinear = layer.base_layer
    made = type(layer.oft_R[NAME])(base.out_features // rank, rank * (rank - 1) // 2, rank, base.out_features,
                                   use_cayley_neumann=False)
    nn.init.zeros_(made.weight)
    layer.oft_R[NAME] = made.to(base.placeholder)


def _rotated(layer: Any, x: Tensor) -> Tensor:
    """Returns RWx + b, computed as R(Wx + b) + (b − Rb) so that R = 1 changes no bit. R is solved in fp32 at least."""
    rotation, (y, bias) = layer.oft_R[NAME], layer.base_layer.with_bias(x)
    weight = rotation.weight.to(torch.promote_types(rotation.weight.dtype, torch.float32))
    turned = functional_call(rotation, {"weight": weight}, (y.to(weight.dtype),))
    if bias is not None:
        bias = bias.to(weight.dtype)[None]
        turned = turned + (bias - functional_call(rotation, {"weight": weight}, (bias,)))
    return turned.to(y.dtype)


def _turning(layer: Any) -> Callable[[Tensor], Tensor]:
    return partial(_rotated, layer)


def _blocks_divide(rank: int, outputs: int) -> str:
    if outputs % rank == 0:
        return ""
    return f"OFT turns blocks of {rank} outputs, which do not divide its {outputs}. Choose a rank that does: 16, 32…"


def _problem(module: str, layer: Layer) -> str:
    _, rows, columns = shape = tuple(layer["oft_blocks"].shape)
    if rows != columns:
        return f"{module}.oft_blocks is {shape}, and blocks that turn are square. Get the file again."
    alpha = layer["alpha"].item() if "alpha" in layer else 0.0
    return (f"This OFT limits how far it turns (alpha {alpha:g} at {module}), which is not supported. Choose one that "
            "was trained without a constraint.") if alpha > 0 else ""


def _start_problem(module: str, layer: Layer) -> str:
    return "" if layer["oft_blocks"].shape[-1] > 1 else (
        f"{module}.oft_blocks is {tuple(layer['oft_blocks'].shape)}: blocks of one output cannot turn, so nothing can "
        "be trained. Start from one of a rank of at least 2.")


def _export_oft(layer: Any) -> Layer:
    """Returns the blocks (O/b, b, b) that ComfyUI reads. ComfyUI turns by (I + Q)(I − Q)⁻¹ with Q = blocks − blocksᵀ,
    PEFT by (I − S)(I + S)⁻¹, so Q = −S."""
    rotation = layer.oft_R[NAME]
    vector, edge = rotation.weight.float(), rotation.block_size
    blocks = vector.new_zeros(len(vector), edge, edge)
    rows, columns = torch.triu_indices(edge, edge, 1)
    blocks[:, rows, columns] = -vector
    return {"oft_blocks": blocks}


def _restore_oft(layer: Any, tensors: Layer) -> Iterator[Restored]:
    blocks = tensors["oft_blocks"]
    rows, columns = torch.triu_indices(blocks.shape[-1], blocks.shape[-1], 1)
    yield "oft_blocks", "oft_R", (blocks.transpose(1, 2) - blocks)[:, rows, columns]


KINDS = {
    # Qiu et al. 2023 (arXiv:2306.07280), on the output side, as LyCORIS and ComfyUI have it: h = R Wx
    "OFT": Kind(
        least_rank=2, rank_problem=_blocks_divide, config=_oft_config, finish=_turn_outputs, forward=_turning,
        stored_as="OFT", tensors=(("oft_blocks",),), marks=("oft_blocks",), dimensions=3,
        has_alpha=lambda names: False, problem=_problem, start_problem=_start_problem,
        rank=lambda layer: layer["oft_blocks"].shape[-1],
        widths=lambda layer: (None, len(layer["oft_blocks"]) * layer["oft_blocks"].shape[1]), export=_export_oft,
        restore=_restore_oft, lycoris={"algo": "diag-oft"},
        not_merged="it turns the model's weights and adds nothing to them"),
}
