"""Finds out which layers a recipe trains, at what rank and how fast, and whether a run can start from a LoRA."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from ..lora.inject import Layout, inject
from ..lora.kinds import KINDS
from ..lora.layers import adapter_kind, is_stuck, kind_of, layers
from ..lora.tensors import from_lora, layout_of
from ..model.family import Family
from ..model.lending import Weight
from ..model.view import build_view
from ..recipe.config import TrainConfig

OWN = ("init", "alpha", "target_modules", "target_regex", "block_ranks")
"""Settings that a LoRA to start from brings itself. It brings `rank` too, but every recipe has to set that."""


def family_problems(config: TrainConfig, family: Family) -> Iterator[str]:
    """Yields a sentence for each thing that a recipe asks for and a family does not have."""
    if not config.target_regex and config.target_modules not in family.targets:
        yield (f"target_modules is '{config.target_modules}', but it is not known which layers of {family.name} "
               f"those are. Choose one of {', '.join(family.targets)}.")
    for name, values in (("block_ranks", config.ranks_by_block),
                         ("block_learning_rates", config.learning_rates_by_block)):
        if unknown := sorted(values.kinds - {*family.block_kinds}):
            yield (f"{name} names blocks that {family.name} does not have: {', '.join(unknown)}. It has "
                   f"{' and '.join(family.block_kinds)}; write for example '{family.examples[name]}'.")


def check_adapter(view: nn.Module, config: TrainConfig, family: Family, start: dict[str, Tensor] | None) -> None:
    """Raises ValueError if the adapter that a recipe asks for, or the LoRA to start from, does not fit the model. Takes
    neither weights nor memory: the adapter is made on PyTorch's device for tensors without values."""
    shape = layout(view, config, family, start)
    if start:
        empty = build_view(view, lambda _, like: Weight(like, None, lambda: None), torch.zeros(1, device="meta"))
        inject(empty, config, shape)
        from_lora(empty, start)


def layout(view: nn.Module, config: TrainConfig, family: Family, start: dict[str, Tensor] | None = None) -> Layout:
    """Returns the Linears that are trained, with their ranks and scales: those that a recipe names, or those of the
    LoRA to start from.

    Raises ValueError if there are none, if one of them cannot have its rank, or if a run cannot start from that LoRA.
    """
    linears = {name: m for name, m in view.named_modules() if isinstance(m, nn.Linear)}
    if not start:
        return _layout_of_recipe(linears, config, family)
    check_start(start, config, {*linears})
    return layout_of(start)


def _layout_of_recipe(linears: dict[str, nn.Linear], config: TrainConfig, family: Family) -> Layout:
    pattern = config.target_regex or family.targets[config.target_modules]
    by_block, rates = config.ranks_by_block, config.learning_rates_by_block
    ranks = {name: int(by_block.of(family.block_of(name), config.rank)) for name in linears
             if re.fullmatch(pattern, name) and rates.of(family.block_of(name), 1.0)}
    ranks = {name: rank for name, rank in ranks.items() if rank}
    if not ranks:
        raise ValueError(f"No layer of this model is trained: '{pattern}' with block_ranks '{config.block_ranks}' "
                         f"matches none of its {len(linears)} Linears, such as {', '.join([*linears][:3])}. Choose "
                         "other target_modules, or correct target_regex or block_ranks.")
    kind = KINDS[config.adapter]
    for name, rank in ranks.items():
        if problem := kind.rank_problem(rank, linears[name].out_features):
            raise ValueError(f"{name} cannot have rank {rank}: {problem}")
        most = min(linears[name].in_features, linears[name].out_features)
        if config.init in kind.inits_from_weights and rank > most:
            raise ValueError(f"{name} cannot have rank {rank}: it has only {most} directions that init {config.init!r} "
                             f"could start from. Choose a rank up to {most}, or another init.")
    return Layout(ranks, {name: kind.scale(config.alpha or rank, rank) for name, rank in ranks.items()})


def param_groups(view: nn.Module, config: TrainConfig, family: Family) -> list[dict[str, Any]]:
    """Returns the trainable parameters grouped by learning rate: the recipe's, times the block's factor, and for B
    times the LoRA+ ratio (Hayou et al. 2024, arXiv:2402.12354). Rates are positive: to erase, the loss changes its
    sign."""
    groups: dict[float, list[nn.Parameter]] = {}
    up = KINDS[config.adapter].up
    for name, param in view.named_parameters():
        if param.requires_grad:
            rate = abs(config.learning_rate) * config.learning_rates_by_block.of(family.block_of(name), 1.0)
            rate *= config.lora_plus_ratio if up and f".{up}." in name else 1.0
            groups.setdefault(rate, []).append(param)
    return [{"params": params, "lr": rate} for rate, params in groups.items()]


def check_start(lora: dict[str, Tensor], config: TrainConfig, linears: set[str]) -> None:
    """Raises ValueError if a run cannot start from this LoRA, whose scales and ranks replace those of the recipe."""
    kind, wanted = adapter_kind(lora), KINDS[config.adapter].stored_as
    problems = []
    if kind != wanted:
        problems.append(f"Its kind is {kind}, and the recipe's adapter is {config.adapter}. Set adapter to {kind}.")
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in OWN and value != field.default:
            problems.append(f"It brings its own values, layers, ranks and scales, so {field.name} ({value}) has no "
                            f"effect. Set it back to {field.default!r}.")
    told = (kind_of(layer).start_problem(name, layer) for name, layer in layers(lora).items())
    problems += itertools.islice(filter(None, told), 1)
    if all(map(is_stuck, layers(lora).values())):
        problems.append(f"Nothing of it can be trained: in each of its layers, such as {next(iter(layers(lora)))}, "
                        "more than one matrix is zero. Start from another file, or from none.")
    if unknown := sorted({*layers(lora)} - linears):
        problems.append(f"{len(unknown)} of its modules are not in this model: {', '.join(unknown[:3])}.")
    if problems:
        raise ValueError("Training cannot start from this LoRA:\n" + "\n".join(f"- {p}" for p in problems))
