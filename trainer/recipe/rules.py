"""Checks a recipe: the range and the choices of each setting, and every rule between two of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from ..lora.kinds import KINDS
from .blocks import parse_blocks, problem_with_regex
from .optimizers import OPTIMIZERS, Optimizer
from .settings import about, field_of

LEAST_FACTOR = 0.1
"""The smallest learning_rate for an optimizer that takes it as a factor. A person who sets less means a learning
rate."""


def problems(config: Any) -> list[str]:
    """Returns all that is wrong with a recipe (a TrainConfig), a sentence each, with the value and what to do."""
    rules = (_each, _held_out, _unused, _learning_rate, _schedule, _blocks, _adapter, _objective)
    return [problem for rule in rules for problem in rule(config)]


def _each(config: Any) -> Iterator[str]:
    """Yields settings out of their range, or not among their choices. The learning rate has a rule of its own."""
    for field in fields(config):
        if field.name != "learning_rate" and (found := about(field).problem(field.name, getattr(config, field.name))):
            yield found


def _held_out(config: Any) -> Iterator[str]:
    if config.held_out > 1 and config.held_out % 1:
        yield f"held_out must be a whole number of images or a fraction below 1, got {config.held_out}."


def _unused(config: Any) -> Iterator[str]:
    """Yields the values that would be ignored. Of an init, `_adapter` says more."""
    for field in fields(config):
        other, values = about(field).only_with
        value, found = getattr(config, field.name), getattr(config, other) if other else None
        means = found in values if values else other and found != field_of(config, other).default
        if other and value != field.default and not means and field.name != "init":
            yield (f"{field.name} ({value}) has no effect: {other} is {found!r}. Set {field.name} back to "
                   f"{field.default!r}, or {other} to {' or '.join(values) or 'another value'}.")


def _row(config: Any) -> Optimizer:
    """Returns the recipe's optimizer; for an unknown one, a row of which nothing special is asked."""
    return OPTIMIZERS.get(config.optimizer, Optimizer(module="", moments=0))


def _learning_rate(config: Any) -> Iterator[str]:
    rate, most, name = config.learning_rate, about(field_of(config, "learning_rate")).high, config.optimizer
    if config.erase and not -math.inf < rate < 0:
        yield (f"learning_rate must be below 0 to erase a concept, got {rate}. A usual value is -0.0001; to teach the "
               "images instead, turn erase off.")
    elif rate < 0 and not config.erase:
        yield (f"learning_rate must be above 0, got {rate}. A negative one unlearns what the images show: if that is "
               "what you want, turn erase on.")
    elif not config.erase and not 0 < rate < math.inf:
        yield f"learning_rate must be above 0, got {rate}. A usual value is 0.0001."
    elif abs(rate) > most:
        yield f"learning_rate must be from {-most:g} to {most:g}, got {rate}. A usual value is 0.0001."
    if _row(config).finds_rate and abs(rate) < LEAST_FACTOR:
        yield f"learning_rate is a factor for {name}, which finds the rate itself, got {rate}. Set it to 1."
    if _row(config).finds_rate and (config.lora_plus_ratio != 1 or config.block_learning_rates):
        yield (f"{name} takes one learning rate for all, got lora_plus_ratio {config.lora_plus_ratio} and "
               f"block_learning_rates '{config.block_learning_rates}'. Set them back to 1 and nothing, or choose "
               "another optimizer.")


def _schedule(config: Any) -> Iterator[str]:
    total, warmup, decay = config.total_steps, config.lr_warmup_steps, config.lr_decay_steps
    if warmup > total > 0:
        yield (f"lr_warmup_steps ({warmup}) is longer than the run ({total} steps). Choose fewer: a tenth of the steps "
               "is usual.")
    elif config.lr_scheduler == "wsd" and warmup + decay > total > 0:
        yield (f"lr_warmup_steps ({warmup}) and lr_decay_steps ({decay}) are together longer than the run ({total} "
               "steps). Choose fewer.")
    if _row(config).averages and config.lr_scheduler != "constant":
        yield (f"{config.optimizer} needs lr_scheduler 'constant', got {config.lr_scheduler!r}: it averages instead of "
               "lowering the learning rate.")
    if _row(config).averages and config.ema_decay:
        yield f"{config.optimizer} averages the weights itself, got ema_decay {config.ema_decay} as well. Set it to 0."


def _blocks(config: Any) -> Iterator[str]:
    for name in ("block_ranks", "block_learning_rates"):
        yield from (f"{name}: {problem}" for problem in parse_blocks(getattr(config, name)).problems)
    if any(value % 1 for value in config.ranks_by_block.numbers):
        yield f"block_ranks must be whole numbers, got '{config.block_ranks}'."
    if config.target_regex and (problem := problem_with_regex(config.target_regex)):
        yield f"target_regex is no regular expression ({problem}), got '{config.target_regex}'."


def _adapter(config: Any) -> Iterator[str]:
    kind = KINDS.get(config.adapter)
    if kind is None:
        return
    if any(0 < number < kind.least_rank and not number % 1 for number in (config.rank, *config.ranks_by_block.numbers)):
        yield (f"rank must be at least {kind.least_rank} for {config.adapter}, got rank {config.rank} and block_ranks "
               f"'{config.block_ranks}'.")
    others = [name for name, entry in KINDS.items() if config.init in entry.inits]
    if others and config.adapter not in others:
        yield (f"init {config.init!r} does not go with adapter {config.adapter!r}. Choose init "
               f"{' or '.join(map(repr, kind.inits))}, or adapter {' or '.join(others)}.")
    if config.init in kind.inits_from_weights and (config.dropout or config.rank_dropout):
        yield (f"init {config.init!r} takes its start out of the model, so nothing of it can be dropped, got dropout "
               f"{config.dropout} and rank_dropout {config.rank_dropout}. Set both to 0.")


def _objective(config: Any) -> Iterator[str]:
    if config.stratified_timesteps and config.batch_size * config.gradient_accumulation_steps < 2:
        yield ("stratified_timesteps needs more than one image in a step, got batch_size "
               f"{config.batch_size} and gradient_accumulation_steps {config.gradient_accumulation_steps}.")
