"""The plan of a training's memory: right against a count of a real step's storages, as fast as what there is allows,
and lowered without a change of the mathematics when there was less."""

from __future__ import annotations

import re
from dataclasses import replace

import memory
import pytest
import torch
from livelora.trainer.model.counting import Live
from livelora.trainer.model.fitting import DoesNotFit
from livelora.trainer.model.memory import LEAST_SHARE, MARGIN, Memory
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.training import planning
from livelora.trainer.training.example import Example
from livelora.trainer.training.planning import plan_for
from livelora.trainer.training.trainer import OutOfMemory, Trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

RECIPE = TrainConfig(steps=4, rank=4, learning_rate=1e-3, optimizer="AdamW")
SIZE = (16, 32, 32)
BIG, SMALL = (16, 32, 32), (16, 16, 16)


def examples(host, *sizes: tuple[int, ...]) -> list[Example]:
    draw = torch.Generator().manual_seed(3)
    return [Example(torch.randn(size, generator=draw), [host.encode_text("a cat")]) for size in sizes]


def make(host, config=RECIPE, **options) -> Trainer:
    return Trainer(host, config, examples(host, BIG, BIG), **options)


def with_memory(host, available: int, **options) -> None:
    """Lets the host say that its device has so much memory. It stands for a card that this machine lacks."""
    host.memory = lambda: Memory(available=available, **{"weights": 0, **options})


def plan(host, config=RECIPE, sizes=(BIG,)):
    return plan_for(host, config, sizes, host.encode_text("a cat"))


class Refusing(TorchDispatchMode):
    """Refuses the n-th tensor that an operation makes, as a card without memory would, and counts them."""

    def __init__(self, refused: int | None = None) -> None:
        super().__init__()
        self.count, self.refused = 0, refused

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.count += torch.is_tensor(result)
        if torch.is_tensor(result) and self.count == self.refused:
            raise torch.OutOfMemoryError("refused by the test")
        return result


# What is planned

@pytest.mark.parametrize("config", [
    replace(RECIPE, gradient_checkpointing="all"),
    replace(RECIPE, gradient_checkpointing="none"),
    replace(RECIPE, gradient_checkpointing="all", gradient_accumulation_steps=2),
    replace(RECIPE, gradient_checkpointing="none", batch_size=2, adapter_dtype="bf16"),
    replace(RECIPE, gradient_checkpointing="none", rank=64, adapter_dtype="bf16"),
    replace(RECIPE, gradient_checkpointing="all", rank=32, init="PiSSA"),
    replace(RECIPE, gradient_checkpointing="all", adapter="DoRA"),
    replace(RECIPE, gradient_checkpointing="all", adapter="LoKr", target_modules="attention"),
], ids=lambda c: f"{c.adapter} {c.init} {c.rank} {c.gradient_checkpointing} {c.batch_size}×"
                 f"{c.gradient_accumulation_steps}")
def test_a_step_takes_what_was_planned(host, patcher, config):
    trainer = make(host, config)
    assert trainer.plan.activations == pytest.approx(taken(trainer, patcher), rel=0.03)


def taken(trainer, patcher) -> int:
    """The most bytes that the activations and gradients of a step took."""
    live = Live([*patcher.model.diffusion_model.parameters(), *trainer.view.parameters(), *trainer.view.buffers()])
    with live:
        trainer._gradients()
    return live.peak


def test_a_plan_counts_the_adapters_own_tensors(host):
    """PiSSA keeps the matrices that it began with."""
    for init, pairs in (("kaiming", 1), ("PiSSA", 2)):
        made = plan(host, replace(RECIPE, init=init))
        trainer = make(host, replace(RECIPE, init=init))
        assert made.fixed.adapter == pairs * sum(p.nbytes for p in trainer.params) == trainer._bytes_there()


@pytest.mark.slow
@pytest.mark.parametrize("point", [memory.Point("bf16", 512, 16, 1, 10, "AdamW"),
                                   memory.Point("fp8", 1024, 4, 2, 0, "AdamW8bit")], ids=str)
def test_a_step_of_full_size_takes_what_was_planned(point):
    """Two points of `bench memory`."""
    expected, kept = memory.predicted(memory.make_host(point.weights), point)
    assert expected == pytest.approx(memory.counted(memory.make_host(point.weights), point, kept), rel=0.03)


def test_what_is_left_of_the_memory_is_spent_on_blocks_that_are_not_computed_twice(host):
    kept, (least, most) = [], rooms(host)
    for available in (*range(least, most, (most - least) // 8), most):
        with_memory(host, available)
        made = plan(host)
        assert made.room <= available
        kept.append(len(made.kept[BIG]))
    assert kept == sorted(kept)
    assert kept[0] <= 1 and kept[-1] == 4, "the last block may be kept for nothing"


def needed(host, config=RECIPE, how: str = "all") -> int:
    """How much memory a device must have for a plan, with its margin."""
    with_memory(host, 10**12)
    work = plan(host, replace(config, gradient_checkpointing=how)).work
    return int(work * (1 + MARGIN) / (1 - LEAST_SHARE)) + 2


def rooms(host) -> tuple[int, int]:
    """What the slowest and the fastest plan need."""
    return needed(host), needed(host, how="none")


def test_of_equal_blocks_the_last_are_kept(host):
    least, most = rooms(host)
    for available in range(least, most, (most - least) // 40):
        with_memory(host, available)
        if len(kept := plan(host).kept[BIG]) == 1:
            assert kept in ({1}, {3})
            return
    raise AssertionError("no plan kept one block")


def test_small_pictures_keep_more_than_large_ones(host):
    with_memory(host, needed(host))
    made = plan(host, sizes=(SMALL, BIG))
    assert len(made.kept[SMALL]) > len(made.kept[BIG])


def test_the_desktop_keeps_what_was_left_to_it(host):
    least, most = rooms(host)
    with_memory(host, most)
    left = plan(host, replace(RECIPE, leave_free=(most - least) / 1e9))
    assert left.room <= least < plan(host).room


def test_a_batch_is_split_before_weights_are_fetched(host):
    config = replace(RECIPE, batch_size=4)
    whole, one = needed(host, config), needed(host)
    with_memory(host, one + (whole - one) // 2, streams=True)
    made = plan(host, config)
    assert made.rung.images in (1, 2) and not made.rung.streamed
    assert re.search(r"[12] pictures? of 4 at a time", made.sentence())


def test_weights_for_which_there_is_no_room_are_fetched(host):
    least = needed(host)
    with_memory(host, int(least * 1.5), streams=True, weights=least)
    made = plan(host)
    assert made.rung.streamed and "are fetched for each step, which is slower" in made.sentence()


def test_a_plan_says_what_would_make_it_faster(host):
    least, most = rooms(host)
    with_memory(host, (least + most) // 2)
    said = plan(host).advice
    missing = re.fullmatch(r"With (\d+) MB more no block would be computed twice, which saves \d+% of the "
                           r"operations\.", said)
    with_memory(host, (least + most) // 2 + 10**6 * int(missing[1]) + 10**6)
    made = plan(host)
    assert (len(made.kept[BIG]), made.advice) == (4, "")
    made = plan(host, replace(RECIPE, gradient_checkpointing="all"))
    assert made.advice.startswith("With gradient_checkpointing auto no block would be computed twice")
    with_memory(host, int(least * 1.5), streams=True, weights=least)
    assert plan(host).advice.startswith("A smaller model file")


def test_what_fits_in_no_way_is_refused_before_anything_is_loaded(host, monkeypatch):
    monkeypatch.setattr(host, "load", lambda room: pytest.fail("it was loaded"))
    least, most = rooms(host)
    with_memory(host, 4_000_000)
    with pytest.raises(DoesNotFit, match=r"This training needs \d+ MB of memory, and there are 4 MB\. Pictures of "):
        make(host)
    with_memory(host, int(0.75 * least))
    with pytest.raises(DoesNotFit, match="It fits with pictures of (half|three quarters) "):
        make(host)
    with_memory(host, (least + most) // 2)
    with pytest.raises(DoesNotFit, match="It fits with gradient_checkpointing auto; or"):
        make(host, replace(RECIPE, gradient_checkpointing="none"))


def test_another_type_of_number_makes_another_plan(host):
    wide = plan(host).activations
    host.dtype = torch.bfloat16
    assert plan(host).activations < 0.7 * wide


def test_a_plan_says_what_goes_where(host):
    with_memory(host, 2_000_000_000, weights=10**9)
    assert re.fullmatch(r"1\.0 GB of 2\.0 GB: weights 1\.0 GB, LoRA and optimizer 2 MB, a step 2\d MB; keeping 4 of 4 "
                        r"blocks, at least [\d.]+ m?s a step\.", plan(host).sentence())


def test_a_step_does_the_operations_that_were_counted(host):
    """However many images run together and whichever blocks are computed twice."""
    with_memory(host, 10**9)
    for changes in ({}, {"gradient_checkpointing": "all"}, {"batch_size": 2}):
        trainer = make(host, replace(RECIPE, **changes))
        with FlopCounterMode(display=False) as counted:
            trainer.step()
        images = trainer.config.batch_size
        assert counted.get_total_flops() == pytest.approx(images * max(trainer.plan.flop.values()), rel=0.01)


# What happens when there was less

def weights_after(trainer: Trainer, steps: int = 2) -> list[torch.Tensor]:
    for _ in range(steps):
        trainer.step()
    return [p.detach().clone() for p in trainer.params]


def test_memory_that_runs_out_at_any_moment_of_a_step_changes_no_bit(host):
    expected = weights_after(make(host))
    counting, counted, told = Refusing(), make(host), []
    with counting:
        counted.step()
    for refused in range(2, counting.count, counting.count // 10):
        trainer = make(host, tell=lambda sentence, plan: told.append(sentence))
        with Refusing(refused):
            trainer.step()
        assert len(trainer.plan.kept[BIG]) == 2, "a rung lower than 4"
        assert all(map(torch.equal, weights_after(trainer, steps=1), expected))
    assert told[0].startswith("Memory ran out at step 1. The step is taken again in a way that needs less and takes "
                              "longer: ")


def test_memory_that_lies_in_gaps_is_given_back_between_steps(host):
    """What only PyTorch's allocator on a CUDA device has: told by the test."""
    trainer, freed = make(host), []
    host.free = lambda: freed.append(trainer.steps_done)
    for unused in (0, trainer.plan.room, trainer.plan.room + 1):
        host.unused = lambda unused=unused: unused
        trainer.step()
    assert freed == [3]


def test_a_split_batch_gives_the_same_gradients(host):
    config = replace(RECIPE, batch_size=2, caption_dropout=0.5, preservation_weight=0.5)
    whole, split = make(host, config), make(host, config)
    split.plan = replace(split.plan, rungs=(replace(split.plan.rung, images=1),))
    losses = whole._gradients().item(), split._gradients().item()
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for one, other in zip(whole.params, split.params, strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-7)


def test_a_lower_plan_knows_what_its_own_way_takes(host, patcher):
    with_memory(host, 10**9)
    trainer = make(host, replace(RECIPE, batch_size=2, gradient_checkpointing="all"))
    whole = trainer.plan.activations
    trainer._lower("refused")
    assert trainer.plan.rung.images == 1 and trainer.plan.further
    assert trainer.plan.activations == pytest.approx(taken(trainer, patcher), rel=0.05)
    assert trainer.plan.activations < whole / 1.5


def test_below_the_last_rung_the_training_ends_with_what_to_do(host):
    trainer = make(host)
    with pytest.raises(OutOfMemory, match=r"not enough memory for step 1.*Close other programs"):
        for _ in range(20):
            trainer._lower("refused")


def test_every_rung_gives_the_same_gradients(host):
    trainer, found = make(host), []
    for changes in ({}, {"in_ram": True}, {"holds": True}, {"in_ram": True, "holds": True}):
        rung = replace(trainer.plan.rung, **changes)
        trainer.plan = replace(trainer.plan, rungs=(rung,), kept={BIG: frozenset()} if changes else trainer.plan.kept)
        trainer._gradients()
        found.append([p.grad.clone() for p in trainer.params])
    for grads in found[1:]:
        assert all(map(torch.equal, grads, found[0]))


@pytest.mark.parametrize("known", [False, True], ids=["before anything is loaded", "in the first step"])
def test_a_block_that_overwrites_what_its_gradients_need_ends_the_training_by_name(host, patcher, monkeypatch, known):
    config = replace(RECIPE, gradient_checkpointing="all")
    kind = type(patcher.model.diffusion_model.single_blocks[0])
    forward = kind.forward

    def overwriting(self, *args, **kwargs):
        found = forward(self, *args, **kwargs)
        squared = found * found
        found.mul_(2)
        return squared

    monkeypatch.setattr(planning, "_KNOWN", {})
    if known:
        make(host, config)
    else:
        monkeypatch.setattr(host, "load", lambda room: pytest.fail("it was loaded"))
    monkeypatch.setattr(kind, "forward", overwriting)
    with pytest.raises(RuntimeError, match="its block SingleStreamBlock overwrites numbers that its gradients"):
        make(host, config).step()
