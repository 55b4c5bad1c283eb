"""Merges several LoRAs into one and cuts a LoRA to a lower rank, without ever building a matrix as large as a layer.

Shapes: I input width, O output width, R rank.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..disk.text import counted
from .file import Lora, about, load
from .formats import Families
from .kinds import Layer
from .layers import PREFIX, STORED, adapter_kind, diffs, layers
from .names import family_of
from .reading import read as our_names

LASTING = ("modelspec.architecture", "modelspec.prediction_type", "modelspec.resolution", "modelspec.author",
           "modelspec.license", "ss_base_model_version")
"""The metadata that hold for the merged LoRA too, unless its parts disagree."""


class Part(NamedTuple):
    """Holds a LoRA with our names, how strongly it goes in, and what its file is called."""

    lora: Lora
    strength: float
    name: str


class Change(NamedTuple):
    """Tells what a merge did with one layer."""

    rank_before: int
    """The ranks of all parts together."""
    rank_after: int
    norm: float
    """‖ΔW‖ (Frobenius) before the cut."""
    kept: float
    """‖ΔW‖ after the cut ÷ before: 0…1."""


def read(path: Path, strength: float, name: str, families: Families) -> Part:
    """Reads a LoRA file in any of the usual formats, with its metadata.

    Raises ValueError, with the file's name, if it is not a LoRA file or cannot be merged."""
    file = load(path)
    try:
        lora = Lora(our_names(file, families), file.metadata)
        _check_kind(lora)
    except ValueError as err:
        raise ValueError(f"'{name}' cannot be merged or resized. {err}") from err
    return Part(lora, strength, name)


def _check_kind(lora: Lora) -> None:
    kind = adapter_kind(lora)
    if STORED[kind].not_merged:
        raise ValueError(f"Its kind is {kind}: {STORED[kind].not_merged}. Choose a LoRA or an rsLoRA; or put Load LoRA "
                         "nodes in a row, which take every kind.")


def merge(parts: list[Part], rank: int,
          progress: Callable[[int, int], None]) -> tuple[dict[str, Tensor], dict[str, Change]]:
    """Returns ΔW = Σ strength · ΔWᵢ as one LoRA in fp32, and what was done with each layer. A layer need not be in all
    parts. Changes of norms and biases are added up too.

    With rank 0 the ranks add up and ΔW is exact. Otherwise no layer has more than `rank`, and ΔW is the nearest one of
    that rank in Frobenius norm (Eckart and Young 1936). Alpha is the rank. After each layer, `progress` is called with
    the number of layers that are done and the number of all layers.

    Raises ValueError if there are no parts, if layers of one name differ in size, or if there are values that are not
    finite."""
    if not parts:
        raise ValueError("Nothing is left to merge: every strength is 0. Give at least one LoRA another strength.")
    found: dict[str, list[tuple[Part, Layer]]] = {}
    for part in parts:
        for module, layer in layers(part.lora).items():
            found.setdefault(module, []).append((part, layer))
    _check_sizes(found)
    lora, changes = {}, {}
    for module, sources in found.items():
        a, b, changes[module] = _merge_layer(module, sources, rank)
        lora |= {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b,
                 f"{PREFIX}{module}.alpha": torch.tensor(float(len(a)))}
        progress(len(changes), len(found))
    return lora | _add_diffs(parts), changes


def _add_diffs(parts: list[Part]) -> dict[str, Tensor]:
    """Returns the changes of norms and biases, Σ strength · change. Nothing of them is cut."""
    total: dict[str, Tensor] = {}
    for part in parts:
        for key, value in diffs(part.lora).items():
            if key in total and total[key].shape != value.shape:
                raise ValueError(f"{key} is {tuple(total[key].shape)} and {tuple(value.shape)} large: these LoRAs are "
                                 "for different models. Choose two that were trained for the same one.")
            total[key] = total.get(key, 0) + part.strength * value.float()
    return total


def _check_sizes(found: dict[str, list[tuple[Part, Layer]]]) -> None:
    for module, sources in found.items():
        sizes = [f"{layer['lora_A.weight'].shape[1]} → {len(layer['lora_B.weight'])}" for _, layer in sources]
        if len({*sizes}) > 1:
            raise ValueError(f"{module} is {' and '.join(sizes)} wide in {_names(sources)}: they are for different "
                             "models. Choose two that were trained for the same one.")


def _names(sources: list[tuple[Part, Layer]]) -> str:
    return " and ".join(f"'{part.name}'" for part, _ in sources)


def _merge_layer(module: str, sources: list[tuple[Part, Layer]], rank: int) -> tuple[Tensor, Tensor, Change]:
    a, b = _stack([(layer, part.strength) for part, layer in sources])
    before, norm, kept = len(a), _norm(a, b), 1.0
    if not math.isfinite(norm):
        raise ValueError(f"{module} has values that are not finite in {_names(sources)}, as after a training that "
                         "diverged. Choose a file from before that.")
    if 0 < rank < before:
        a, b, kept = _cut(a, b, rank)
    return a, b, Change(before, len(a), norm, kept)


def _stack(sources: list[tuple[Layer, float]]) -> tuple[Tensor, Tensor]:
    """Stacks the A of all parts one below the other, (ΣR, I), and their B side by side, (O, ΣR). Strength and alpha / R
    are multiplied into B."""
    downs = [layer["lora_A.weight"].float() for layer, _ in sources]
    ups = [layer["lora_B.weight"].float() * (strength * layer["alpha"].item() / len(layer["lora_A.weight"]))
           for layer, strength in sources]
    return torch.cat(downs), torch.cat(ups, dim=1)


def _norm(a: Tensor, b: Tensor) -> float:
    """Returns ‖BA‖ (Frobenius) = √tr(BᵀB AAᵀ)."""
    return ((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt().item()  # below 0 by rounding, where parts cancel out


def _cut(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Returns the best A and B of that rank, with the same norm, and the share of ‖BA‖ that they keep.

    With B = Q₁R₁ and Aᵀ = Q₂R₂ the singular values of BA are those of R₁R₂ᵀ, which is R × R."""
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    root, whole = s[:rank].sqrt(), s.norm().item()
    kept = s[:rank].norm().item() / whole if whole else 1.0
    return (root[:, None] * vh[:rank]) @ q_a.T, (q_b @ u[:, :rank]) * root, kept


def report(changes: dict[str, Change]) -> str:
    """Returns a line with the ranks before and after, and how much of ΔW was kept."""
    before = _span([change.rank_before for change in changes.values()])
    if all(change.rank_before == change.rank_after for change in changes.values()):
        return f"rank {before}, {counted(len(changes), 'layer')}, nothing is cut"
    after = _span([change.rank_after for change in changes.values()])
    worst = min(changes, key=lambda module: changes[module].kept)
    return (f"rank {before} → {after} keeps {100 * share(changes):.1f} % of the change (Frobenius norm), worst layer "
            f"{worst} {100 * changes[worst].kept:.1f} %")


def share(changes: dict[str, Change]) -> float:
    """Returns ‖ΔW‖ of all layers together after the cut, divided by what it was before."""
    whole = math.hypot(*(change.norm for change in changes.values()))
    return math.hypot(*(change.norm * change.kept for change in changes.values())) / whole if whole else 1.0


def _span(ranks: list[int]) -> str:
    return f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)}–{max(ranks)}"


def metadata(parts: list[Part], rank: int, changes: dict[str, Change], families: Families) -> dict[str, str]:
    """Returns the metadata of the merged file: what was merged and how, and what still holds of the parts' metadata."""
    largest = max(change.rank_after for change in changes.values())
    triggers = _distinct(parts, "modelspec.trigger_phrase")
    facts = {  # which model they are for, only the parts can tell
        **about(family_of(layers(parts[0].lora), families), "", ", ".join(triggers)),
        "modelspec.merged_from": ", ".join(part.name for part in parts),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(largest),
        "ss_network_alpha": str(float(largest)),
        **{key: values[0] for key in LASTING if len(values := _distinct(parts, key)) == 1},
        "livelora.merge": json.dumps({"loras": [{"name": part.name, "strength": part.strength} for part in parts],
                                      "rank": rank, "kept": share(changes)}),
    }
    return {name: value for name, value in facts.items() if value}


def _distinct(parts: list[Part], key: str) -> list[str]:
    """Returns the values that the parts have for a key, each once, in the order of the parts."""
    return list(dict.fromkeys(part.lora.metadata[key] for part in parts if part.lora.metadata.get(key)))
