"""A training that the plan accepts never runs out of memory, whatever there is, and always learns the same. What the
plan does not accept is refused before a weight moves."""

from __future__ import annotations

import gc

import comfy.model_management as mm
import pytest
import softcard as card
import torch
from livelora.trainer.model.fitting import DoesNotFit
from livelora.trainer.model.memory import LEAST_SHARE, MARGIN, Plan, Rung
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.training.example import Example
from livelora.trainer.training.planning import plan_of
from livelora.trainer.training.task import Task
from livelora.trainer.training.trainer import Trainer
from test_jobs import EVERYTHING, dataset, run, same  # noqa: F401

pytestmark = pytest.mark.slow
RECIPE = {"steps": 9, "rank": 4, "learning_rate": 1e-3, "optimizer": "AdamW"}
BUCKETS = ((16, 16, 16), (16, 24, 24))
LIMITS = 8
MB = 2**20


def empty() -> int:
    """Leaves nothing of ours on the card, and returns what is used all the same."""
    mm.unload_all_models()
    gc.collect()  # what is left of the trainer before: a view has circles of references
    return card.used()


def limit_for(plan: Plan) -> int:
    """The bytes that a card must have for a plan, with its margin."""
    weights = 0 if plan.rung.streamed else plan.memory.weights
    return int((plan.work * (1 + MARGIN) + weights) / (1 - LEAST_SHARE)) + 2


def lowest(plan: Plan) -> Plan:
    """The plan on the last rung."""
    while lower := plan.lower():
        plan = lower
    return plan


class Limited:
    """Trains one recipe on cards of several sizes."""

    def __init__(self, host, patcher, batch_size: int) -> None:
        draw = torch.Generator().manual_seed(1)
        self.host, self.patcher, self.config = host, patcher, TrainConfig(**RECIPE, batch_size=batch_size)
        self.examples = [Example(torch.randn(size, generator=draw), [host.encode_text("a cat in a box")])
                         for size in BUCKETS for _ in range(batch_size)]
        self.used = empty()

    def plan(self) -> Plan:
        """The plan where there is room for everything."""
        return plan_of(self.host, self.config, self.examples)

    def train(self, limit: int) -> tuple[Plan, int, list[torch.Tensor], list[str]]:
        """Takes a step with each bucket. Returns the plan, the most bytes that were used at a time, what was learned,
        and what was told of memory that ran out."""
        told: list[str] = []
        assert empty() == self.used
        with card.limited(self.used + limit):
            card.reset_peak()
            trainer = Trainer(self.host, self.config, self.examples, tell=lambda sentence, plan: told.append(sentence))
            plan = trainer.plan
            for _ in BUCKETS:
                trainer.step()
            return plan, card.peak() - self.used, [p.detach().cpu() for p in trainer.params], told


def nearly(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal but for what AdamW makes of gradients that are rounded elsewhere."""
    return bool((one - other).norm() < 1e-3 * other.norm())


@pytest.fixture(params=[1, 4], ids="batch {}".format)
def limited(host, patcher, monkeypatch, request):
    monkeypatch.setattr(mm, "minimum_inference_memory", lambda: MB)  # nothing is drawn or encoded
    return Limited(host, patcher, request.param)


def test_it_fits_from_all_to_the_largest_block_only(limited):
    everything = limited.plan()
    most, least = limit_for(everything), limit_for(lowest(everything))
    _, _, expected, _ = limited.train(2**40)
    for limit in (most - (most - least) * i // (LIMITS - 1) for i in range(LIMITS)):
        plan, peak, learned, told = limited.train(limit)
        predicted = plan.weights + plan.work
        print(f"{limit / MB:6.2f} MB: predicted {predicted / MB:6.2f}, used {peak / MB:6.2f}: {plan.sentence()}")
        assert not told
        same = torch.equal if plan.rung.images == limited.config.batch_size else nearly
        assert all(map(same, learned, expected)), f"with {limit} bytes"
        # Where weights are fetched, all of them are planned as such; ComfyUI keeps the largest ones loaded.
        assert peak < 1.03 * predicted and (plan.rung.streamed or predicted < 1.05 * peak)
    assert plan.rung == everything.rungs[-1] == Rung(images=1, streamed=True, in_ram=True)
    empty()
    with card.limited(limited.used + least - 1024), pytest.raises(DoesNotFit, match="This training needs"):
        Trainer(limited.host, limited.config, limited.examples)
    assert limited.patcher.loaded_size() == 0


def test_a_whole_job_fits_the_smallest_card_that_its_plan_accepts(host, dataset, tmp_path, monkeypatch):  # noqa: F811
    """What it draws is rounded elsewhere: see test_jobs. Its captions and pictures are encoded before."""
    recipe = {"batch_size": 1, "gradient_accumulation_steps": 1}
    whole = run(tmp_path / "whole", host, dataset, **recipe)
    monkeypatch.setattr(mm, "minimum_inference_memory", lambda: MB)
    used, plan = empty(), Task.of(host, TrainConfig(**{**EVERYTHING, **recipe}), dataset).plan
    with card.limited(used + limit_for(lowest(plan))):
        job = run(tmp_path / "small", host, dataset, **recipe)
    assert job.plan.rung == plan.rungs[-1] and same(job, whole, 2)
