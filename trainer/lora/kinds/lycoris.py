"""Defines LoHa and LoKr, whose changes are made of Hadamard and Kronecker products.

Shapes: I input width, O output width, R rank.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from ...disk.packages import require
from .kind import NAME, Kind, Layer, Settings, restore

LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
NO_PRODUCT = "its change is no product of two thin matrices"


def _loha_config(settings: Settings, common: dict[str, Any], ranked: dict[str, Any]) -> Any:
    return require("peft").LoHaConfig(r=settings.rank, alpha=settings.rank, rank_dropout=settings.rank_dropout,
                                      **common, **ranked)


def _lokr_config(settings: Settings, common: dict[str, Any], ranked: dict[str, Any]) -> Any:
    return require("peft").LoKrConfig(r=settings.rank, alpha=settings.rank, rank_dropout=settings.rank_dropout,
                                      decompose_factor=settings.lokr_factor, **common, **ranked)


def _finish(layer: Any, settings: Settings, rank: int, scale: float) -> None:
    layer.scaling[NAME] = scale
    # PEFT leaves a layer out if it draws no more than this, and it draws 0 once in 2²⁴ times even where nothing is to
    # be dropped. A block that is recomputed would then not be the same. We drop modules ourselves.
    layer.module_dropout[NAME] = -1.0


def _export_loha(layer: Any) -> Layer:
    found = {name: getattr(layer, name)[NAME] for name in LOHA}
    return {**found, "alpha": torch.tensor(float(layer.scaling[NAME] * layer.r[NAME]))}


def _export_lokr(layer: Any) -> Layer:
    found = {name: getattr(layer, name)[NAME] for name in LOKR if NAME in getattr(layer, name)}
    scale = layer.scaling[NAME]
    if not _lokr_has_alpha(found):
        return {**found, "lokr_w1": found["lokr_w1"] * scale}
    return {**found, "alpha": torch.tensor(float(scale * layer.r[NAME]))}


def _loha_problem(module: str, layer: Layer) -> str:
    one, two = (_factor(layer, name) for name in ("hada_w1", "hada_w2"))
    return "" if one == two else (
        f"{module}.hada_w1_a and hada_w1_b make up a matrix of {one}, and {module}.hada_w2_a and hada_w2_b one of "
        f"{two}: a LoHa multiplies them value by value. Get the file again.")


def _lokr_has_alpha(names: Collection[str]) -> bool:
    """Returns whether ComfyUI looks at the alpha of a layer. It does not if both factors are whole."""
    return not {"lokr_w1", "lokr_w2"} <= {*names}


def _lokr_rank(layer: Layer) -> int:
    """Returns the rank of a layer. A layer of two whole factors has none and gets the longer side of the second: from
    half of that rank on PEFT keeps the factor whole."""
    ranks = [len(layer[name]) for name in ("lokr_w2_b", "lokr_w1_b") if name in layer]
    return ranks[0] if ranks else max(layer["lokr_w2"].shape)


def _lokr_widths(layer: Layer) -> tuple[int, int]:
    (rows, columns), (inner_rows, inner_columns) = (_factor(layer, name) for name in ("lokr_w1", "lokr_w2"))
    return columns * inner_columns, rows * inner_rows


def _factor(layer: Layer, name: str) -> tuple[int, int]:
    """Returns the rows and columns of a factor, which may be a product itself."""
    if name in layer:
        return layer[name].shape[0], layer[name].shape[1]
    return layer[f"{name}_a"].shape[0], layer[f"{name}_b"].shape[1]


KINDS = {
    # Hyeon-Woo et al. 2021 (arXiv:2108.06098)
    "LoHa": Kind(
        uses=frozenset({"alpha", "rank_dropout"}), config=_loha_config, finish=_finish, stored_as="LoHa",
        tensors=(LOHA,), marks=("hada_w1_a",), products=(("hada_w1_b", "hada_w1_a"), ("hada_w2_b", "hada_w2_a")),
        problem=_loha_problem, rank=lambda layer: len(layer["hada_w1_b"]),
        widths=lambda layer: (layer["hada_w1_b"].shape[1], len(layer["hada_w1_a"])), export=_export_loha,
        restore=restore, lycoris={"algo": "loha"}, not_merged=NO_PRODUCT),
    # Yeh et al. 2023 (arXiv:2309.14859)
    "LoKr": Kind(
        uses=frozenset({"alpha", "rank_dropout", "lokr_factor"}), config=_lokr_config, finish=_finish,
        stored_as="LoKr",
        tensors=tuple((*one, *two) for one in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
                      for two in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))),
        marks=("lokr_w",), products=(("lokr_w1_b", "lokr_w1_a"), ("lokr_w2_b", "lokr_w2_a")),
        has_alpha=_lokr_has_alpha, rank=_lokr_rank, widths=_lokr_widths, export=_export_lokr, restore=restore,
        shaped_by="the lokr_factor and rank that it was trained with",
        lycoris={"algo": "lokr"}, not_merged=NO_PRODUCT),
}
