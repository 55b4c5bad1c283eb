"""One allocation of a step is refused, each in its turn. The step is taken as if nothing had been: adapter, optimizer
and averages are the same, bit for bit."""

from __future__ import annotations

import os
from typing import Any

import pytest
import softcard as card
import torch
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.training.example import Example
from livelora.trainer.training.optimizer_state import optimizer_state
from livelora.trainer.training.trainer import Trainer

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
"""How many of a step's allocations are refused in a test. REFUSED=100000 refuses them all."""


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
