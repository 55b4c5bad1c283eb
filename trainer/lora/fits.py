"""Whether a LoRA belongs to a model. ComfyUI's loader passes over what does not fit, with a line in the log.

Shapes: I and O a layer's inputs and outputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .formats import Layer, layers


def check_fits(lora: dict[str, Tensor], network: nn.Module) -> None:
    """Raises ValueError if a LoRA with our names has no layer that the network has, at the same widths."""
    modules: dict[str, Any] = dict(network.named_modules())
    widths = {name: (m.in_features, m.out_features) for name, m in modules.items() if hasattr(m, "in_features")}
    wanted = {name: _widths(layer) for name, layer in layers(lora).items()}
    if any(_same(widths.get(name), pair) for name, pair in wanted.items()):
        return
    raise ValueError(f"This LoRA was trained for another base model: none of its {len(wanted)} layers, such as "
                     f"{next(iter(wanted))}, is in the model wired in at the same width. Wire in the model that the "
                     "job trains on, or choose another job.")


def _same(widths: tuple[int, int] | None, wanted: tuple[int | None, int]) -> bool:
    return widths is not None and widths[1] == wanted[1] and wanted[0] in (None, widths[0])


def _widths(layer: Layer) -> tuple[int | None, int]:
    """(I, O) of the Linear that a layer is for. OFT turns the outputs and does not tell I."""
    if "lora_A.weight" in layer:
        return layer["lora_A.weight"].shape[1], layer["lora_B.weight"].shape[0]
    if "hada_w1_a" in layer:
        return layer["hada_w1_b"].shape[1], layer["hada_w1_a"].shape[0]
    if "oft_blocks" in layer:
        return None, layer["oft_blocks"].shape[0] * layer["oft_blocks"].shape[1]
    (rows, columns), (inner_rows, inner_columns) = (_factor(layer, name) for name in ("lokr_w1", "lokr_w2"))
    return columns * inner_columns, rows * inner_rows


def _factor(layer: Layer, name: str) -> tuple[int, int]:
    """Rows and columns of one of LoKr's two factors, which may be a product itself."""
    if name in layer:
        return layer[name].shape[0], layer[name].shape[1]
    return layer[f"{name}_a"].shape[0], layer[f"{name}_b"].shape[1]
