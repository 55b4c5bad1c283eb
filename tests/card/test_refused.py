"""One allocation is refused, each in its turn: of a step, of the model's loading, of what is looked at in between, and
of encoding and drawing. All comes out as if nothing had been, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.model_management as mm
import pytest
import softcard as card
import torch
from livelora.trainer.jobs.lease import Lease
from livelora.trainer.model.shortage import once_more
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.training.example import Example
from livelora.trainer.training.optimizer_state import optimizer_state
from livelora.trainer.training.preparation import Preparation
from livelora.trainer.training.task import Task
from livelora.trainer.training.trainer import Trainer
from livelora.trainer.training.validation import HeldOut
from test_job import SETTINGS, dataset  # noqa: F401

RECIPE = {"steps": 9, "rank": 4, "learning_rate": 1e-3, "batch_size": 2}
RECIPES = {
    **{name: {"optimizer": name} for name in ("AdamW", "AdamW8bit", "Adafactor")},
    "Prodigy": {"optimizer": "Prodigy", "learning_rate": 1.0},
    "ScheduleFreeAdamW": {"optimizer": "ScheduleFreeAdamW", "lr_scheduler": "constant"},
    "bf16": {"optimizer": "AdamW8bit", "adapter_dtype": "bf16"},
    "average": {"optimizer": "AdamW", "ema_decay": 0.9, "adapter_dtype": "bf16"},
    "dropout": {"optimizer": "AdamW", "dropout": 0.2, "gradient_accumulation_steps": 2,
                "gradient_checkpointing": "none"},
    "DoRA": {"optimizer": "AdamW", "adapter": "DoRA"},
}
TRIES = int(os.environ.get("REFUSED", 12))
"""How many of the allocations are refused in a test. REFUSED=100000 refuses them all."""


@pytest.fixture
def make(host):
    """Makes trainers of one recipe."""
    host.load(0)
    draw = torch.Generator().manual_seed(1)
    examples = [Example(torch.randn(16, 8, 8, generator=draw), [host.encode_text(text)])
                for text in ("red apple", "a cat in a box")]

    def make(**recipe: Any) -> Trainer:
        return Trainer(host, TrainConfig(**{**RECIPE, **recipe}), examples)

    return make


def everything(trainer: Trainer) -> list[Any]:
    """What a trainer has learned and goes on with."""
    tensors, numbers = optimizer_state(trainer.optimizer)
    averages, count = trainer.averaged.state()
    found = [torch.atleast_1d(t.detach()).cpu() for t in (*trainer.params, *tensors.values(), *averages.values())]
    return [[t.view(torch.uint8).numpy().tobytes() for t in found], numbers, count, trainer.steps_done]


def spread(count: int, tries: int) -> list[int]:
    """So many numbers below `count`, the first and the last among them."""
    return sorted({round(i * (count - 1) / (tries - 1)) for i in range(tries)})


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("before", [0, 1], ids=["the first step", "a later step"])
def test_a_step_that_was_refused_memory_is_taken_again(make, recipe, before):
    """The first step is when optimizers make their state."""
    def at_start() -> Trainer:
        trainer = make(**RECIPES[recipe])
        for _ in range(before):
            trainer.step()
        return trainer

    calm, lowered = at_start(), 0
    count = card.count(calm.step)
    after = everything(calm)
    for n in spread(count - 2, TRIES):  # bitsandbytes keeps its two tables from the first try
        trainer = at_start()
        plan = trainer.plan
        assert card.refused_at(trainer.step, n)
        lowered += trainer.plan is not plan
        assert everything(trainer) == after, f"with allocation {n} of {count}"
    assert lowered > TRIES / 2


def test_a_start_that_the_card_draws_is_the_same_each_time(make):
    """PiSSA takes its start out of the weights with random vectors. The card's own numbers go on as before."""
    state = torch.card.get_rng_state()
    one, other = (everything(make(optimizer="AdamW", init="PiSSA")) for _ in range(2))
    assert one == other and torch.card.get_rng_state().equal(state)


def found_at_each(work: Callable[[], Any], ready: Callable[[], Any] = lambda: None) -> list[Any]:
    """What `work` returns when an allocation of it is refused, for a spread of allocations, a third as wide as that of
    a step. Before each try the card is made `ready`."""
    found: list[Any] = []
    ready()
    for n in spread(card.count(work), TRIES // 3):
        ready()
        assert card.refused_at(lambda: found.append(work()), n)
    assert len(found) >= 2
    return found


def test_a_model_that_was_refused_memory_is_loaded_all_the_same(make):
    def unloaded() -> Trainer:
        trainer = make(optimizer="AdamW")
        mm.unload_all_models()
        return trainer

    def step() -> list[Any]:
        trainer.carefully(trainer.model.bring)
        loaded.append(card.allocations())
        trainer.step()
        return everything(trainer)

    loaded: list[int] = []
    trainer = unloaded()
    card.count(step)
    after = everything(trainer)
    for n in spread(loaded[0], TRIES // 3):
        trainer = unloaded()
        assert card.refused_at(step, n)
        assert everything(trainer) == after, f"with allocation {n} of {loaded[0]}"


@pytest.mark.parametrize("recipe", ["ScheduleFreeAdamW", "average", "DoRA"])
def test_a_look_that_was_refused_memory_is_had_again_and_leaves_no_trace(make, recipe):
    """The held-out loss is measured, and the LoRA is copied."""
    trainer = make(**RECIPES[recipe])
    trainer.step()
    plan, held_out = trainer.plan, HeldOut(trainer.draws._examples, 2)
    measure = partial(trainer.model.run, partial(held_out.losses, trainer, held_out.parts[0]))

    def ready() -> None:
        trainer.plan = plan
        trainer.model.forget()
        trainer.model.bring()

    expected, after = (measure(), trainer.lora()), everything(trainer)
    for losses, lora in found_at_each(lambda: (trainer.carefully(measure), trainer.lora()), ready):
        assert losses == expected[0] and all(lora[name].equal(expected[1][name]) for name in lora)
        assert everything(trainer) == after


def test_what_was_refused_memory_is_encoded_all_the_same(host, dataset):  # noqa: F811
    task = Task.of(host, TrainConfig(**RECIPE), dataset)
    prepare = Preparation(task, Lease().step, lambda _: None, lambda _: None).run
    expected = prepare()
    for found in found_at_each(prepare, host.clear):
        for one, other in zip(found.train, expected.train, strict=True):
            assert one.texts[0]["cond"].equal(other.texts[0]["cond"])
            # ComfyUI encodes a picture for which there is too little memory in tiles.
            assert torch.allclose(one.latents, other.latents, atol=1e-3)


def test_a_picture_that_was_refused_memory_is_drawn_all_the_same(host):
    text = host.encode_text("ohwx")
    draw = partial(once_more, partial(host.sampler({}, 1.0), text, text, SETTINGS, lambda: False), host.clear)
    expected = draw()
    for picture in found_at_each(draw, host.clear):
        assert torch.allclose(picture, expected, atol=1 / 255)
