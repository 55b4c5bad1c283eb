"""What makes a recipe right: every range, every choice, and every rule between two fields."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_args

from . import choices
from .blocks import parse_blocks, problem_with_regex
from .choices import LORA_LIKE

if TYPE_CHECKING:
    from .config import TrainConfig

_CHOICES: dict[str, Any] = {
    "adapter": choices.Adapter, "init": choices.AdapterInit, "target_modules": choices.TargetModules,
    "adapter_dtype": choices.AdapterDtype, "optimizer": choices.Optimizer, "lr_scheduler": choices.LRScheduler,
    "timestep_sampling": choices.TimestepSampling, "loss": choices.Loss, "huber_schedule": choices.HuberSchedule,
    "caption_shuffle": choices.CaptionShuffle}
_AT_LEAST = {
    "steps": 1, "rank": 1, "batch_size": 1, "gradient_accumulation_steps": 1, "save_every": 1, "keep_states": 1,
    "validate_every": 1, "lr_cycles": 1, "caption_variants": 1, "extra_steps": 0, "alpha": 0, "weight_decay": 0,
    "lr_warmup_steps": 0, "lr_decay_steps": 0, "max_grad_norm": 0, "guidance": 0, "seed": 0, "held_out": 0,
    "early_stop_patience": 0, "prior_weight": 0, "preservation_weight": 0, "keep_tokens": 0, "lokr_factor": -1}
_BELOW_ONE = ("dropout", "rank_dropout", "module_dropout", "ema_decay")
_SHARES = ("caption_dropout", "unmasked_weight")
_POSITIVE = ("timestep_std", "timestep_shift", "huber_c", "lora_plus_ratio", "lr_power")
_ONLY_WITH: dict[str, tuple[str, tuple]] = {
    "lr_cycles": ("lr_scheduler", ("cosine_with_restarts",)),
    "lr_power": ("lr_scheduler", ("polynomial",)),
    "lr_decay_steps": ("lr_scheduler", ("wsd",)),
    "timestep_mean": ("timestep_sampling", ("logit_normal",)),
    "timestep_std": ("timestep_sampling", ("logit_normal",)),
    "timestep_shift": ("timestep_sampling", ("fixed_shift",)),
    "huber_c": ("loss", ("huber", "smooth_l1")),
    "huber_schedule": ("loss", ("huber", "smooth_l1")),
    "keep_tokens": ("caption_shuffle", ("tags", "sentences")),
    "caption_variants": ("caption_shuffle", ("tags", "sentences")),
    "alpha": ("adapter", ("LoRA", "rsLoRA", "DoRA", "LoHa", "LoKr")),
    "init": ("adapter", LORA_LIKE),
    "lora_plus_ratio": ("adapter", LORA_LIKE),
    "dropout": ("adapter", LORA_LIKE),
    "rank_dropout": ("adapter", ("LoRA", "rsLoRA", "LoHa", "LoKr")),
    "lokr_factor": ("adapter", ("LoKr",)),
}
"""Fields that mean something only while another field has one of these values."""


def problems(config: TrainConfig) -> list[str]:
    """Everything that is wrong with a recipe, a sentence each, with the value and what to do."""
    rules = (_ranges, _choices, _unused, _learning_rate, _schedule, _blocks, _adapter, _objective)
    return [problem for rule in rules for problem in rule(config)]


def _ranges(config: TrainConfig) -> Iterator[str]:
    value = {field.name: getattr(config, field.name) for field in fields(config)}
    for name, low in _AT_LEAST.items():
        if not low <= value[name] < math.inf:
            yield f"{name} must be at least {low}, got {value[name]}."
    yield from (f"{name} must be at least 0 and below 1, got {value[name]}."
                for name in _BELOW_ONE if not 0 <= value[name] < 1)
    yield from (f"{name} must be from 0 to 1, got {value[name]}." for name in _SHARES if not 0 <= value[name] <= 1)
    yield from (f"{name} must be above 0, got {value[name]}." for name in _POSITIVE if not 0 < value[name] < math.inf)
    if not math.isfinite(config.timestep_mean):
        yield f"timestep_mean must be a finite number, got {config.timestep_mean}."
    if config.held_out > 1 and config.held_out % 1:
        yield f"held_out must be a whole number of images or a fraction below 1, got {config.held_out}."


def _choices(config: TrainConfig) -> Iterator[str]:
    for name, choice in _CHOICES.items():
        if (value := getattr(config, name)) not in get_args(choice):
            yield f"{name} must be one of {', '.join(get_args(choice))}, got {value!r}."


def _unused(config: TrainConfig) -> Iterator[str]:
    """Values that would be ignored."""
    defaults = {field.name: field.default for field in fields(config)}
    for name, (other, values) in _ONLY_WITH.items():
        value, default, found = getattr(config, name), defaults[name], getattr(config, other)
        if value != default and found not in values:
            yield (f"{name} ({value}) has no effect: {other} is {found!r}. Set {name} back to {default!r}, or {other} "
                   f"to {' or '.join(map(str, values))}.")


def _learning_rate(config: TrainConfig) -> Iterator[str]:
    rate = config.learning_rate
    if config.erase and not -math.inf < rate < 0:
        yield (f"learning_rate must be below 0 to erase a concept, got {rate}. A usual value is -0.0001; to teach the "
               "images instead, turn erase off.")
    elif rate < 0 and not config.erase:
        yield (f"learning_rate must be above 0, got {rate}. A negative one unlearns what the images show: if that is "
               "what you want, turn erase on.")
    elif not config.erase and not 0 < rate < math.inf:
        yield f"learning_rate must be above 0, got {rate}. A usual value is 0.0001."
    if config.optimizer == "Prodigy" and abs(rate) < 0.1:
        yield f"learning_rate is a factor for Prodigy, which finds the rate itself, got {rate}. Set it to 1."
    if config.optimizer == "Prodigy" and (config.lora_plus_ratio != 1 or config.block_learning_rates):
        yield (f"Prodigy takes one learning rate for all, got lora_plus_ratio {config.lora_plus_ratio} and "
               f"block_learning_rates '{config.block_learning_rates}'. Set them back to 1 and nothing, or choose "
               "another optimizer.")


def _schedule(config: TrainConfig) -> Iterator[str]:
    total, warmup, decay = config.total_steps, config.lr_warmup_steps, config.lr_decay_steps
    if warmup > total > 0:
        yield (f"lr_warmup_steps ({warmup}) is longer than the run ({total} steps). Choose fewer: a tenth of the steps "
               "is usual.")
    elif config.lr_scheduler == "wsd" and warmup + decay > total > 0:
        yield (f"lr_warmup_steps ({warmup}) and lr_decay_steps ({decay}) are together longer than the run ({total} "
               "steps). Choose fewer.")
    if config.optimizer == "ScheduleFreeAdamW" and config.lr_scheduler != "constant":
        yield (f"ScheduleFreeAdamW needs lr_scheduler 'constant', got {config.lr_scheduler!r}: it averages instead of "
               "lowering the learning rate.")
    if config.optimizer == "ScheduleFreeAdamW" and config.ema_decay:
        yield f"ScheduleFreeAdamW averages the weights itself, got ema_decay {config.ema_decay} as well. Set it to 0."


def _blocks(config: TrainConfig) -> Iterator[str]:
    for name in ("block_ranks", "block_learning_rates"):
        yield from (f"{name}: {problem}" for problem in parse_blocks(getattr(config, name)).problems)
    if any(value % 1 for value in config.ranks_by_block.numbers):
        yield f"block_ranks must be whole numbers, got '{config.block_ranks}'."
    if config.target_regex and (problem := problem_with_regex(config.target_regex)):
        yield f"target_regex is no regular expression ({problem}), got '{config.target_regex}'."
    if config.target_regex and config.target_modules != "all":
        yield (f"target_regex ('{config.target_regex}') takes the place of target_modules ({config.target_modules!r}). "
               "Set target_modules to 'all', or empty target_regex.")


def _adapter(config: TrainConfig) -> Iterator[str]:
    if config.adapter == "OFT" and 1 in (config.rank, *config.ranks_by_block.numbers):
        yield (f"rank is the edge of OFT's blocks and must be at least 2, got rank {config.rank} and block_ranks "
               f"'{config.block_ranks}'.")
    if config.init == "PiSSA" and config.adapter == "DoRA":
        yield "init 'PiSSA' does not go with adapter 'DoRA'. Choose init 'kaiming' or 'orthogonal', or adapter LoRA."
    if config.init == "PiSSA" and (config.dropout or config.rank_dropout):
        yield (f"init 'PiSSA' takes its start out of the model, so nothing of it can be dropped, got dropout "
               f"{config.dropout} and rank_dropout {config.rank_dropout}. Set both to 0.")


def _objective(config: TrainConfig) -> Iterator[str]:
    if config.stratified_timesteps and config.batch_size * config.gradient_accumulation_steps < 2:
        yield ("stratified_timesteps needs more than one image in a step, got batch_size "
               f"{config.batch_size} and gradient_accumulation_steps {config.gradient_accumulation_steps}.")
    if config.preservation_class and not config.preservation_weight:
        yield (f"preservation_class ('{config.preservation_class}') has no effect: preservation_weight is 0. Set it to "
               "1, or empty preservation_class.")
