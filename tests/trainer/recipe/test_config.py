"""A recipe reports all its problems at once, each with the value and what to do."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pytest
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.recipe.settings import about, field_of, setting

NAN, INF = float("nan"), float("inf")
SHUFFLED = {"caption_shuffle": "tags"}
RANGES: list[tuple[dict[str, Any], str]] = [
    ({"steps": 0}, "steps must be from 1 to 100000, got 0."),
    ({"rank": 0}, "rank must be from 1 to 512, got 0."),
    ({"rank": -4}, "rank must be from 1 to 512, got -4."),
    ({"batch_size": 0}, "batch_size must be from 1 to 64, got 0."),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be from 1 to 256, got 0."),
    ({"save_every": 0}, "save_every must be from 1 to 100000, got 0."),
    ({"validate_every": 0}, "validate_every must be from 1 to 100000, got 0."),
    ({"lr_cycles": 0, "lr_scheduler": "cosine_with_restarts"}, "lr_cycles must be from 1 to 100, got 0."),
    ({"caption_variants": 0, **SHUFFLED}, "caption_variants must be from 1 to 256, got 0."),
    ({"extra_steps": -1}, "extra_steps must be from 0 to 100000, got -1."),
    ({"alpha": -1.0}, "alpha must be from 0 to 1024, got -1.0."),
    ({"alpha": NAN}, "alpha must be from 0 to 1024, got nan."),
    ({"weight_decay": -0.1}, "weight_decay must be from 0 to 1, got -0.1."),
    ({"lr_warmup_steps": -1}, "lr_warmup_steps must be from 0 to 10000, got -1."),
    ({"lr_decay_steps": -1, "lr_scheduler": "wsd"}, "lr_decay_steps must be from 0 to 100000, got -1."),
    ({"max_grad_norm": -1.0}, "max_grad_norm must be from 0 to 100, got -1.0."),
    ({"max_grad_norm": INF}, "max_grad_norm must be from 0 to 100, got inf."),
    ({"guidance": -1.0}, "guidance must be from 0 to 30, got -1.0."),
    ({"seed": -1}, "seed must be from 0 to 18446744073709551615, got -1."),
    ({"held_out": -1.0}, "held_out must be from 0 to 10000, got -1.0."),
    ({"held_out": 2.5}, "held_out must be a whole number of images or a fraction below 1, got 2.5."),
    ({"early_stop_patience": -1}, "early_stop_patience must be from 0 to 1000, got -1."),
    ({"prior_weight": -1.0}, "prior_weight must be from 0 to 10, got -1.0."),
    ({"preservation_weight": -1.0}, "preservation_weight must be from 0 to 10, got -1.0."),
    ({"keep_tokens": -1, **SHUFFLED}, "keep_tokens must be from 0 to 64, got -1."),
    ({"lokr_factor": -2, "adapter": "LoKr"}, "lokr_factor must be from -1 to 4096, got -2."),
    ({"dropout": 1.0}, "dropout must be from 0 to 0.95, got 1.0."),
    ({"rank_dropout": -0.1}, "rank_dropout must be from 0 to 0.95, got -0.1."),
    ({"module_dropout": 1.0}, "module_dropout must be from 0 to 0.95, got 1.0."),
    ({"ema_decay": 1.0}, "ema_decay must be from 0 to 0.9999, got 1.0."),
    ({"caption_dropout": 1.1}, "caption_dropout must be from 0 to 1, got 1.1."),
    ({"unmasked_weight": -0.1}, "unmasked_weight must be from 0 to 1, got -0.1."),
    ({"timestep_std": 0.0, "timestep_sampling": "logit_normal"}, "timestep_std must be from 0.05 to 5, got 0.0."),
    ({"timestep_mean": NAN, "timestep_sampling": "logit_normal"}, "timestep_mean must be from -5 to 5, got nan."),
    ({"timestep_shift": 0.0, "timestep_sampling": "fixed_shift"}, "timestep_shift must be from 0.05 to 20, got 0.0."),
    ({"huber_c": 0.0, "loss": "huber"}, "huber_c must be from 0.001 to 10, got 0.0."),
    ({"lora_plus_ratio": INF}, "lora_plus_ratio must be from 0.1 to 64, got inf."),
    ({"lr_power": 0.0, "lr_scheduler": "polynomial"}, "lr_power must be from 0.1 to 10, got 0.0."),
]
CHOICES: list[tuple[dict[str, Any], str]] = [
    ({"adapter": "IA3"}, "adapter must be one of LoRA, rsLoRA, DoRA, LoHa, LoKr, OFT, got 'IA3'."),
    ({"init": "zeros"}, "init must be one of kaiming, orthogonal, PiSSA, got 'zeros'."),
    ({"target_modules": "mlp"},
     "target_modules must be one of all, attention and mlp, attention, style, character, got 'mlp'."),
    ({"adapter_dtype": "fp8"}, "adapter_dtype must be one of fp32, bf16, got 'fp8'."),
    ({"optimizer": "SGD"},
     "optimizer must be one of AdamW8bit, PagedAdamW8bit, AdEMAMix8bit, Lion8bit, AdamW, Adafactor, Prodigy, "
     "ScheduleFreeAdamW, CAME, got 'SGD'."),
    ({"lr_scheduler": "step"},
     "lr_scheduler must be one of cosine, linear, constant, cosine_with_restarts, polynomial, wsd, got 'step'."),
    ({"timestep_sampling": "beta"},
     "timestep_sampling must be one of sigmoid, logit_normal, uniform, resolution_shift, fixed_shift, got 'beta'."),
    ({"loss": "mse"}, "loss must be one of l2, l1, huber, smooth_l1, got 'mse'."),
    ({"huber_schedule": "linear", "loss": "huber"},
     "huber_schedule must be one of constant, exponential, snr, got 'linear'."),
    ({"caption_shuffle": "words"}, "caption_shuffle must be one of none, tags, sentences, got 'words'."),
]
UNUSED: list[tuple[dict[str, Any], str]] = [
    ({"lr_cycles": 3},
     "lr_cycles (3) has no effect: lr_scheduler is 'cosine'. Set lr_cycles back to 1, or lr_scheduler to "
     "cosine_with_restarts."),
    ({"lr_power": 2.0}, "lr_power (2.0) has no effect: lr_scheduler is 'cosine'."),
    ({"lr_decay_steps": 2}, "lr_decay_steps (2) has no effect: lr_scheduler is 'cosine'."),
    ({"timestep_mean": 0.5}, "timestep_mean (0.5) has no effect: timestep_sampling is 'sigmoid'."),
    ({"timestep_std": 2.0}, "timestep_std (2.0) has no effect: timestep_sampling is 'sigmoid'."),
    ({"timestep_shift": 3.0, "timestep_sampling": "resolution_shift"},
     "timestep_shift (3.0) has no effect: timestep_sampling is 'resolution_shift'. Set timestep_shift back to 1.0, or "
     "timestep_sampling to fixed_shift."),
    ({"huber_c": 0.2}, "huber_c (0.2) has no effect: loss is 'l2'. Set huber_c back to 0.1, or loss to huber or "
                       "smooth_l1."),
    ({"huber_schedule": "snr", "loss": "l1"}, "huber_schedule (snr) has no effect: loss is 'l1'."),
    ({"keep_tokens": 1}, "keep_tokens (1) has no effect: caption_shuffle is 'none'."),
    ({"caption_variants": 4}, "caption_variants (4) has no effect: caption_shuffle is 'none'."),
    ({"alpha": 8.0, "adapter": "OFT"}, "alpha (8.0) has no effect: adapter is 'OFT'."),
    ({"init": "orthogonal", "adapter": "LoHa"},
     "init 'orthogonal' does not go with adapter 'LoHa'. Choose init 'kaiming', or adapter LoRA or rsLoRA or DoRA."),
    ({"lora_plus_ratio": 16.0, "adapter": "LoKr"}, "lora_plus_ratio (16.0) has no effect: adapter is 'LoKr'."),
    ({"dropout": 0.1, "adapter": "OFT"}, "dropout (0.1) has no effect: adapter is 'OFT'."),
    ({"rank_dropout": 0.1, "adapter": "DoRA"}, "rank_dropout (0.1) has no effect: adapter is 'DoRA'."),
    ({"lokr_factor": 8}, "lokr_factor (8) has no effect: adapter is 'LoRA'."),
]
TOGETHER: list[tuple[dict[str, Any], str]] = [
    ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0. A usual value is 0.0001."),
    ({"learning_rate": NAN}, "learning_rate must be above 0, got nan."),
    ({"learning_rate": INF}, "learning_rate must be above 0, got inf."),
    ({"learning_rate": 1.5}, "learning_rate must be from -1 to 1, got 1.5. A usual value is 0.0001."),
    ({"learning_rate": -1e-4},
     "learning_rate must be above 0, got -0.0001. A negative one unlearns what the images show: if that is what you "
     "want, turn erase on."),
    ({"erase": True}, "learning_rate must be below 0 to erase a concept, got 0.0001. A usual value is -0.0001;"),
    ({"erase": True, "learning_rate": -INF}, "learning_rate must be below 0 to erase a concept, got -inf."),
    ({"erase": True, "learning_rate": NAN}, "learning_rate must be below 0 to erase a concept, got nan."),
    ({"optimizer": "Prodigy"},
     "learning_rate is a factor for Prodigy, which finds the rate itself, got 0.0001. Set it to 1."),
    ({"optimizer": "Prodigy", "learning_rate": 1.0, "lora_plus_ratio": 16.0},
     "Prodigy takes one learning rate for all, got lora_plus_ratio 16.0 and block_learning_rates ''."),
    ({"optimizer": "Prodigy", "learning_rate": 1.0, "block_learning_rates": "double: 2"},
     "Prodigy takes one learning rate for all, got lora_plus_ratio 1.0 and block_learning_rates 'double: 2'."),
    ({"lr_warmup_steps": 11}, "lr_warmup_steps (11) is longer than the run (10 steps). Choose fewer"),
    ({"lr_scheduler": "wsd", "lr_warmup_steps": 6, "lr_decay_steps": 5},
     "lr_warmup_steps (6) and lr_decay_steps (5) are together longer than the run (10 steps). Choose fewer."),
    ({"optimizer": "ScheduleFreeAdamW"}, "ScheduleFreeAdamW needs lr_scheduler 'constant', got 'cosine'"),
    ({"optimizer": "ScheduleFreeAdamW", "lr_scheduler": "constant", "ema_decay": 0.9},
     "ScheduleFreeAdamW averages the weights itself, got ema_decay 0.9 as well. Set it to 0."),
    ({"block_ranks": "middle 8"}, "block_ranks: 'middle 8' cannot be read."),
    ({"block_ranks": "double 9-3: 8"}, "block_ranks: 'double 9-3: 8' ends before it begins."),
    ({"block_ranks": "double: 0.5"}, "block_ranks must be whole numbers, got 'double: 0.5'."),
    ({"block_learning_rates": "single: -1"}, "block_learning_rates: 'single: -1' cannot be read."),
    ({"target_regex": "double_blocks.("}, "target_regex is no regular expression (missing )"),
    ({"target_regex": ".*", "target_modules": "attention"},
     "target_regex (.*) has no effect: target_modules is 'attention'. Set target_regex back to '', or target_modules "
     "to all."),
    ({"adapter": "OFT", "rank": 1}, "rank must be at least 2 for OFT, got rank 1 and"),
    ({"adapter": "OFT", "block_ranks": "single: 1"},
     "rank must be at least 2 for OFT, got rank 4 and block_ranks 'single: 1'."),
    ({"adapter": "DoRA", "init": "PiSSA"},
     "init 'PiSSA' does not go with adapter 'DoRA'. Choose init 'kaiming' or 'orthogonal', or adapter LoRA or rsLoRA."),
    ({"init": "PiSSA", "dropout": 0.1},
     "init 'PiSSA' takes its start out of the model, so nothing of it can be dropped, got dropout 0.1 and "
     "rank_dropout 0.0. Set both to 0."),
    ({"init": "PiSSA", "rank_dropout": 0.2}, "got dropout 0.0 and rank_dropout 0.2."),
    ({"stratified_timesteps": True},
     "stratified_timesteps needs more than one image in a step, got batch_size 1 and gradient_accumulation_steps 1."),
    *(({name: "a\ud83d", **more},
       f"{name} has half of a character in it, which no file can hold: 'a\\ud83d'. Delete it") for name, more in (
           ("preservation_class", {"preservation_weight": 1.0}), ("target_regex", {}))),
    ({"preservation_class": "cat"}, "preservation_class (cat) has no effect: preservation_weight is 0.0. Set "
     "preservation_class back to '', or preservation_weight to another value."),
]


def recipe(**change: Any) -> TrainConfig:
    return TrainConfig(**{"steps": 10, "rank": 4, **change})


@pytest.mark.parametrize(("change", "message"), [*RANGES, *CHOICES, *UNUSED, *TOGETHER],
                         ids=lambda value: str(value)[:40])
def test_each_problem_is_named_and_nothing_else(change, message):
    with pytest.raises(ValueError) as caught:
        recipe(**change)
    assert message in str(caught.value)
    assert str(caught.value).startswith("This recipe cannot be trained:\n- ")
    assert str(caught.value).count("\n- ") == 1, "one mistake, one sentence"


def test_all_problems_come_together():
    """One of every rule."""
    with pytest.raises(ValueError) as caught:
        recipe(steps=0, rank=0, learning_rate=-1.0, optimizer="SGD", dropout=2.0, lr_cycles=3, target_regex="(",
               block_ranks="8", stratified_timesteps=True, init="PiSSA", adapter="DoRA", erase=True, lr_warmup_steps=-1)
    found = str(caught.value).splitlines()[1:]
    starts = ["- steps must", "- rank must", "- dropout must", "- optimizer must", "- lr_warmup_steps must",
              "- lr_cycles (3)", "- block_ranks: '8'", "- target_regex is no", "- init 'PiSSA' does not",
              "- init 'PiSSA' takes", "- stratified_timesteps needs"]
    assert [line[:len(start)] for line, start in zip(found, starts, strict=True)] == starts


@pytest.mark.parametrize("change", [
    {},
    {"rank": 1, "alpha": 0.5, "weight_decay": 0.0, "max_grad_norm": 0.0, "guidance": 0.0, "prior_weight": 0.0},
    {"held_out": 1.0}, {"held_out": 0.1}, {"held_out": 12.0, "early_stop_patience": 3},
    {"erase": True, "learning_rate": -1e-4},
    {"optimizer": "Prodigy", "learning_rate": 1.0}, {"optimizer": "Prodigy", "erase": True, "learning_rate": -1.0},
    {"optimizer": "ScheduleFreeAdamW", "lr_scheduler": "constant", "lr_warmup_steps": 5},
    {"lr_scheduler": "cosine_with_restarts", "lr_cycles": 3}, {"lr_scheduler": "polynomial", "lr_power": 2.0},
    {"lr_scheduler": "wsd", "lr_warmup_steps": 4, "lr_decay_steps": 6}, {"lr_warmup_steps": 10},
    {"lr_warmup_steps": 15, "extra_steps": 5}, {"ema_decay": 0.999},
    {"timestep_sampling": "logit_normal", "timestep_mean": -1.0, "timestep_std": 0.5},
    {"timestep_sampling": "fixed_shift", "timestep_shift": 3.0}, {"timestep_sampling": "uniform"},
    {"stratified_timesteps": True, "batch_size": 2}, {"stratified_timesteps": True, "gradient_accumulation_steps": 2},
    {"loss": "huber", "huber_c": 0.2, "huber_schedule": "snr"}, {"loss": "smooth_l1"}, {"loss": "l1"},
    {"caption_shuffle": "sentences", "keep_tokens": 1, "caption_variants": 4}, {"caption_dropout": 1.0},
    {"preservation_weight": 1.0, "preservation_class": "cat"}, {"preservation_weight": 1.0},
    {"adapter": "rsLoRA", "rank": 128, "rank_dropout": 0.1}, {"adapter": "DoRA", "dropout": 0.1, "init": "orthogonal"},
    {"adapter": "LoHa", "rank_dropout": 0.1}, {"adapter": "LoKr", "lokr_factor": 8, "alpha": 1.0},
    {"adapter": "OFT", "rank": 2, "module_dropout": 0.5}, {"init": "PiSSA", "module_dropout": 0.5},
    {"target_regex": r"double_blocks\.\d+\.img_attn\..*"}, {"target_modules": "character"},
    {"block_ranks": "double 0-9: 8, single: 32, single 7: 0", "block_learning_rates": "double: 0.5"},
    {"lora_plus_ratio": 16.0, "block_learning_rates": "single 20-37: 0"},
], ids=lambda value: str(value)[:40])
def test_what_is_right_is_accepted_as_it_is(change):
    made = recipe(**change).as_dict()
    assert {name: made[name] for name in change} == change


def test_alpha_of_zero_means_rank():
    assert TrainConfig(steps=1, rank=16).lora_alpha == 16
    assert TrainConfig(steps=1, rank=16, alpha=8).lora_alpha == 8


def test_extra_steps_make_the_run_longer_and_no_other_training_of_it():
    short, long = recipe(), recipe(extra_steps=5)
    assert (short.total_steps, long.total_steps) == (10, 15)
    assert short.identity() == long.identity() == recipe(keep_states=5).identity()
    always = {f.name for f in fields(TrainConfig) if not about(f).later}
    assert {*short.identity()} == always - {"extra_steps", "keep_states"}


def test_a_setting_that_came_later_makes_no_other_training_at_its_default():
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Later(TrainConfig):
        novelty: float = setting(0.0, 0, 1, later=True, says="Something new.")

    assert Later(steps=1, rank=1).identity() == recipe(steps=1, rank=1).identity()
    assert Later(steps=1, rank=1, novelty=0.5).identity()["novelty"] == 0.5


@pytest.mark.parametrize(("name", "starts"), [
    ("loss", "How errors count."), ("huber_c", "Only with loss huber or smooth_l1. Errors larger"),
    ("rank_dropout", "Only with adapter LoRA, rsLoRA, LoHa or LoKr. Share"),
    ("preservation_class", "Only with preservation_weight. Hold"),
    ("lr_power", "Only with lr_scheduler polynomial. 1 is")])
def test_a_setting_tells_with_which_choice_it_means_something(name, starts):
    assert about(field_of(TrainConfig, name)).told.startswith(starts)


def test_every_setting_but_the_everyday_ones_stands_in_a_group():
    assert [entry.name for entry in fields(TrainConfig) if not about(entry).group] == [
        "steps", "rank", "learning_rate", "seed"]
