"""Stopping, saving to real files and going on gives the same bits as never stopping, for every optimizer."""

from __future__ import annotations

import json
import math

import pytest
import torch
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.recipe.optimizers import OFFERED
from livelora.trainer.recipe.seeds import generator
from livelora.trainer.training.optim import make_lr_scheduler, make_optimizer
from livelora.trainer.training.optimizer_state import (
    load_optimizer_state,
    load_schedule_state,
    optimizer_state,
    schedule_state,
)
from livelora.trainer.training.rounding import rounded_step
from safetensors.torch import load_file, save_file
from torch import nn

OPTIMIZERS = OFFERED
SHAPES = [(4, 32), (32, 4), (40, 128), (8200,), (4096,)]
"""Below and above bitsandbytes' 4096 elements for 8-bit state, whole blocks of 256 and not, vectors (DoRA's) too."""


def config(optimizer, **change):
    rate = 1.0 if optimizer == "Prodigy" else 1e-2
    schedule = "constant" if optimizer == "ScheduleFreeAdamW" else "cosine"
    return TrainConfig(**{"steps": 6, "rank": 4, "learning_rate": rate, "optimizer": optimizer,
                          "lr_scheduler": schedule, "lr_warmup_steps": 1, **change})


class Run:
    """Six steps along gradients that depend on the step alone. The first has none for even parameters, as LoRA's A."""

    def __init__(self, config, dtype, step):
        self.params = [nn.Parameter(torch.randn(s, generator=generator(i)).to(dtype)) for i, s in enumerate(SHAPES)]
        rate = config.learning_rate
        other = rate if config.optimizer == "Prodigy" else 2 * rate
        self.optimizer = make_optimizer(
            [{"params": self.params[:3], "lr": rate}, {"params": self.params[3:], "lr": other}], config)
        self.schedule = make_lr_scheduler(self.optimizer, config)
        self.step, self.done = step, 0

    def train(self, steps):
        for _ in range(steps):
            for i, p in enumerate(self.params):
                p.grad = torch.randn(p.shape, generator=generator(7, self.done, i)).to(p.dtype)
                p.grad *= bool(self.done or i % 2)
            self.step(self.optimizer, self.done)
            self.schedule.step()
            self.done += 1

    def save(self, folder):
        tensors, numbers = optimizer_state(self.optimizer)
        save_file(tensors, folder / "optimizer.safetensors")
        save_file({str(i): p.detach() for i, p in enumerate(self.params)}, folder / "params.safetensors")
        (folder / "state.json").write_text(json.dumps([self.done, numbers, schedule_state(self.schedule)]))

    def load(self, folder):
        self.done, numbers, schedule = json.loads((folder / "state.json").read_text())
        for i, value in load_file(folder / "params.safetensors").items():
            self.params[int(i)].data.copy_(value)
        load_optimizer_state(self.optimizer, load_file(folder / "optimizer.safetensors"), numbers)
        load_schedule_state(self.schedule, schedule)


def plain(optimizer, _):
    optimizer.step()


def rounded(optimizer, step):
    rounded_step(optimizer, generator(5, "round", step))


@pytest.mark.parametrize(("dtype", "step"), [
    (torch.float32, plain), (torch.bfloat16, plain), (torch.bfloat16, rounded)],
    ids=["fp32", "bf16", "bf16 rounded stochastically"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_going_on_from_files_is_never_having_stopped(name, dtype, step, tmp_path):
    straight = Run(config(name), dtype, step)
    straight.train(3)
    halfway = [p.detach().clone() for p in straight.params]
    straight.save(tmp_path)
    straight.train(3)
    resumed = Run(config(name), dtype, step)
    resumed.load(tmp_path)
    resumed.train(3)
    assert all(map(torch.equal, resumed.params, straight.params))
    assert resumed.schedule.get_last_lr() == straight.schedule.get_last_lr()
    (one, two), (three, four) = optimizer_state(straight.optimizer), optimizer_state(resumed.optimizer)
    assert one.keys() == three.keys() and all(torch.equal(one[n], three[n]) for n in one)
    assert {n: t.dtype for n, t in one.items()} == {n: t.dtype for n, t in three.items()}
    assert two == four
    assert all(p.isfinite().all() for p in straight.params)
    assert not any(map(torch.equal, halfway, straight.params)) or name == "Prodigy"  # whose bf16 is coarser than d


@pytest.mark.parametrize("kernels", [{"fused": True}, {"foreach": None}, {"foreach": True}])
def test_it_goes_on_with_the_kernels_that_it_began_with(kernels, tmp_path):
    """Fused ones, as on a GPU, round in another way. Versions before did not ask for any."""
    def made() -> Run:
        run = Run(config("AdamW"), torch.float32, plain)
        groups = [{"params": g["params"], "lr": g["initial_lr"]} for g in run.optimizer.param_groups]
        run.optimizer = torch.optim.AdamW(groups, **kernels)
        run.schedule = make_lr_scheduler(run.optimizer, config("AdamW"))
        return run

    straight = made()
    straight.train(3)
    straight.save(tmp_path)
    straight.train(3)
    resumed = Run(config("AdamW"), torch.float32, plain)
    resumed.load(tmp_path)
    resumed.train(3)
    assert all(map(torch.equal, resumed.params, straight.params))
    assert [resumed.optimizer.param_groups[0][name] for name in kernels] == [*kernels.values()]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_is_needed(name, tmp_path):
    """Else the test above could not fail."""
    straight, resumed = (Run(config(name), torch.float32, plain) for _ in range(2))
    straight.train(3)
    straight.save(tmp_path)
    resumed.load(tmp_path)
    resumed.optimizer.state.clear()
    straight.train(3)
    resumed.train(3)
    assert not all(map(torch.equal, resumed.params, straight.params))


def test_saving_changes_nothing_and_what_is_saved_does_not_change(tmp_path):
    run = Run(config("AdamW"), torch.float32, plain)
    run.train(1)
    tensors, _ = optimizer_state(run.optimizer)
    before = {n: t.clone() for n, t in tensors.items()}
    run.train(1)
    assert all(torch.equal(tensors[n], t) for n, t in before.items())


def test_8_bit_state_stays_in_8_bits_and_torchs_step_on_the_cpu(tmp_path):
    for name, key, dtype in (("PagedAdamW8bit", "state2", torch.uint8), ("AdamW", "step", torch.float32)):
        run = Run(config(name), torch.float32, plain)
        run.train(1)
        run.save(tmp_path)
        run = Run(config(name), torch.float32, plain)
        run.load(tmp_path)
        value = run.optimizer.state[run.params[2]][key]
        assert value.dtype == dtype and value.device.type == "cpu"


def test_a_run_that_is_extended_goes_on_by_its_longer_schedule(tmp_path):
    """After 4 of 4 steps the cosine is at 0, but after 4 of 8 at a half."""
    done = Run(config("AdamW", steps=4, lr_warmup_steps=0), torch.float32, plain)
    done.train(4)
    assert done.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    done.save(tmp_path)
    longer = Run(config("AdamW", steps=4, extra_steps=4, lr_warmup_steps=0), torch.float32, plain)
    longer.load(tmp_path)
    assert [g["lr"] for g in longer.optimizer.param_groups] == pytest.approx([0.005, 0.01])
    longer.train(1)
    rate = 0.01 * (1 + math.cos(math.pi * 5 / 8)) / 2
    assert longer.schedule.get_last_lr() == pytest.approx([rate, 2 * rate])


def test_the_state_of_another_optimizer_or_adapter_is_refused(tmp_path):
    run = Run(config("AdamW8bit"), torch.float32, plain)
    run.train(1)
    tensors, numbers = optimizer_state(run.optimizer)
    with pytest.raises(RuntimeError, match="is one of the optimizer AdamW8bit, but here AdamW takes its place"):
        load_optimizer_state(Run(config("AdamW"), torch.float32, plain).optimizer, tensors, numbers)
    smaller = make_optimizer([{"params": run.params[:2], "lr": 0.1}], config("AdamW8bit"))
    with pytest.raises(ValueError, match="has 5 parameters in 2 groups, but this adapter has 2 in 1"):
        load_optimizer_state(smaller, tensors, numbers)
