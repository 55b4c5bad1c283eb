"""The average is the one that was promised, and looking at it leaves no trace."""

from __future__ import annotations

import json

import pytest
import torch
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.recipe.seeds import generator
from livelora.trainer.training.averaging import Averaged
from livelora.trainer.training.optim import make_optimizer
from livelora.trainer.training.optimizer_state import optimizer_state
from livelora.trainer.training.rounding import rounded_step
from safetensors.torch import load_file, save_file
from torch import nn

RATE = 2**-4
EMA = {"optimizer": "AdamW", "ema_decay": 0.9}
SCHEDULE_FREE = {"optimizer": "ScheduleFreeAdamW", "lr_scheduler": "constant"}
OFF = {"optimizer": "AdamW"}
ALL = pytest.mark.parametrize("recipe", [EMA, SCHEDULE_FREE, OFF], ids=["EMA", "schedule-free", "off"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


class Run:
    def __init__(self, recipe, dtype=torch.float32):
        config = TrainConfig(**{"steps": 100, "rank": 4, "learning_rate": RATE, "weight_decay": 0.0, **recipe})
        self.params = [nn.Parameter(torch.randn(s, generator=generator(s[0])).to(dtype)) for s in [(3, 5), (70, 80)]]
        self.optimizer = make_optimizer([{"params": self.params, "lr": RATE}], config)
        self.averaged = Averaged(self.params, self.optimizer, config)
        self.done = 0

    def train(self, steps, grad=None):
        for _ in range(steps):
            for p in self.params:
                drawn = torch.randn(p.shape, generator=generator(7, self.done)) if grad is None else grad(p)
                p.grad = drawn.to(p.dtype)
            rounded_step(self.optimizer, generator(1, "round", self.done))
            self.averaged.update()
            self.done += 1


def one_number(decay, values, dtype=torch.float32):
    """The EMA after a parameter had these values, one after each step."""
    param = nn.Parameter(torch.zeros(1, dtype=dtype))
    config = TrainConfig(steps=100, rank=4, ema_decay=decay)
    averaged = Averaged([param], torch.optim.SGD([param]), config)
    for value in values:
        param.data.fill_(value)
        averaged.update()
    return averaged.ema.shadow_params[0]


def test_the_decay_rises_as_documented():
    """k / (k + 9), but 0 at first: 1; 1 + 9/11 · (2 − 1) = 20/11; 20/11 + 9/12 · (4 − 20/11) = 38/11."""
    assert one_number(0.99, [1]).item() == 1
    assert one_number(0.99, [1, 2]).item() == pytest.approx(20 / 11)
    assert one_number(0.99, [1, 2, 4]).item() == pytest.approx(38 / 11)


def test_the_decay_ends_at_ema_decay():
    """2/11 is below 0.2, 3/12 above: 20/11 + 0.8 · (4 − 20/11) = 196/55."""
    assert one_number(0.2, [1, 2, 4]).item() == pytest.approx(196 / 55)


def test_the_average_of_bf16_parameters_is_fp32():
    """20/11 has no exact bf16; its nearest is 1.8203125."""
    average = one_number(0.99, [1, 2], dtype=torch.bfloat16)
    assert average.dtype == torch.float32
    assert average.item() == pytest.approx(20 / 11, abs=1e-6)


def test_the_ema_is_what_is_seen_in_effect():
    run = Run(EMA)
    run.train(3)
    with run.averaged.in_effect():
        assert all(map(torch.equal, run.params, run.averaged.ema.shadow_params))
    assert not torch.equal(run.params[0], run.averaged.ema.shadow_params[0])


@DTYPES
def test_schedule_free_shows_the_mean_of_its_iterates(dtype):
    """Defazio et al. 2024 (arXiv:2405.15682), section 4: with a gradient of always 1, Adam's denominator is 1, so z_t =
    z₀ − t·lr; x_t, the one to use, is the mean of z₁…z_t = z₀ − lr (t + 1) / 2; and y_t, trained, is 0.1 z + 0.9 x."""
    run = Run(SCHEDULE_FREE, dtype)
    with torch.no_grad():
        run.params[1].fill_(2.0)
    run.train(5, torch.ones_like)
    near = 1e-5 if dtype == torch.float32 else 2**-8  # half of bf16's spacing
    trained = 0.1 * (2 - 5 * RATE) + 0.9 * (2 - 3 * RATE)
    assert run.params[1].float().mean().item() == pytest.approx(trained, abs=near)
    with run.averaged.in_effect():
        assert run.params[1].float().mean().item() == pytest.approx(2 - 3 * RATE, abs=near)
        assert run.params[1].dtype == dtype


def test_without_an_average_the_adapter_is_seen_as_it_is():
    run = Run(OFF)
    run.train(2)
    before = [p.detach().clone() for p in run.params]
    with run.averaged.in_effect():
        assert all(map(torch.equal, run.params, before))
    assert run.averaged.state() == ({}, {})


@ALL
@DTYPES
@pytest.mark.parametrize("inference", [False, True], ids=["", "in inference mode"])
def test_looking_leaves_no_trace(recipe, dtype, inference):
    """Parameters, optimizer, average and the steps after it are bit for bit those of a run nobody looked at."""
    looked, alone = Run(recipe, dtype), Run(recipe, dtype)
    for run in (looked, alone):
        run.train(3)
    (tensors, numbers), average = optimizer_state(looked.optimizer), looked.averaged.state()[0]
    for _ in range(2):
        with torch.inference_mode(inference), looked.averaged.in_effect():
            pass
    assert all(map(torch.equal, looked.params, alone.params))
    now, numbers_now = optimizer_state(looked.optimizer)
    assert numbers_now == numbers and all(torch.equal(tensors[n], now[n]) for n in tensors)
    assert all(torch.equal(v, average[n]) for n, v in looked.averaged.state()[0].items())
    for run in (looked, alone):
        run.train(2)
    assert all(map(torch.equal, looked.params, alone.params))
    looked.params[0].square().sum().backward()  # still normal tensors


@ALL
def test_looking_before_the_first_step_and_failing_leave_no_trace(recipe):
    run = Run(recipe)
    before = [p.detach().clone() for p in run.params]
    with pytest.raises(KeyError), run.averaged.in_effect():
        raise KeyError
    assert all(map(torch.equal, run.params, before))
    assert all(group.get("train_mode", True) for group in run.optimizer.param_groups)


@DTYPES
def test_an_ema_goes_on_from_files_as_if_it_had_never_stopped(dtype, tmp_path):
    straight, resumed = Run(EMA, dtype), Run(EMA, dtype)
    straight.train(3)
    tensors, numbers = straight.averaged.state()
    save_file(tensors, tmp_path / "ema.safetensors")
    resumed.averaged.load(load_file(tmp_path / "ema.safetensors"), json.loads(json.dumps(numbers)))
    values = [[p.detach().clone() for p in straight.params]]
    for _ in range(3):
        straight.train(1)
        values.append([p.detach().clone() for p in straight.params])
    for later in values[1:]:
        for param, value in zip(resumed.params, later, strict=True):
            param.data.copy_(value)
        resumed.averaged.update()
    assert all(map(torch.equal, resumed.averaged.ema.shadow_params, straight.averaged.ema.shadow_params))
    assert resumed.averaged.state()[1] == straight.averaged.state()[1]
