"""Stochastic rounding is right on average and the same every time; the optimizer sees fp32, the model bf16."""

from __future__ import annotations

import pytest
import torch
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.recipe.optimizers import OFFERED
from livelora.trainer.recipe.seeds import generator
from livelora.trainer.training.optim import make_optimizer
from livelora.trainer.training.rounding import in_fp32, rounded_step, stochastic_round
from scipy.stats import binomtest
from torch import nn


@pytest.mark.parametrize(("below", "above", "share"), [
    (1.0, 1 + 2**-7, 0.3), (-1.0, -1 - 2**-7, 0.3), (2**-20, 2**-20 * (1 + 2**-7), 0.01),
    (2 - 2**-7, 2.0, 0.5), (96.0, 96.5, 0.999), (0.0, 2**-133, 0.25)])
def test_the_share_rounded_up_is_how_far_up_the_value_lies(below, above, share):
    """bf16 has 7 fraction bits: `below` and `above` are neighbours; from 0 it is the least subnormal, 2⁻¹³³."""
    x = torch.full((40_000,), below + share * (above - below))
    rounded = stochastic_round(x, generator(1, "share")).double()
    assert set(rounded.unique().tolist()) == {below, above}
    expected = (x[0].double().item() - below) / (above - below)
    assert binomtest(int((rounded == above).sum()), len(x), expected).pvalue > 1e-3


def test_every_number_that_bf16_has_stays_as_it_is():
    every = torch.arange(-2**15, 2**15).to(torch.int16).view(torch.bfloat16)
    rounded = stochastic_round(every.float(), generator(2))
    same = rounded.view(torch.int16) == every.view(torch.int16)
    assert (same | every.isnan()).all()
    assert torch.equal(rounded.isnan(), every.isnan())


def test_not_a_number_stays_so_whatever_its_bits():
    nans = torch.tensor([0x7FFFFFFF, 0x7F800001, -1], dtype=torch.int32).view(torch.float32)
    assert stochastic_round(nans.repeat(1000), generator(3)).isnan().all()


@pytest.mark.parametrize("place", range(4))
def test_each_of_the_values_that_are_drawn_at_once_is_rounded_by_all_bits(place):
    """Four values share a draw. Of 20,000, with one bit of the noise stuck, at least a quarter would go another way."""
    shares = torch.arange(1, 16) / 16
    for share in shares.tolist():
        x = torch.full((20_000, 4), 1.0 + share * 2**-7)
        rounded = stochastic_round(x, generator(12, str(share)))[:, place]
        assert binomtest(int((rounded > 1).sum()), len(x), share).pvalue > 1e-5


@pytest.mark.parametrize("count", [1, 3, 4, 5, 0])
def test_any_number_of_values_is_rounded(count):
    assert stochastic_round(torch.ones(count), generator(13)).equal(torch.ones(count, dtype=torch.bfloat16))


def test_nothing_is_drawn_from_pytorchs_own_generator():
    param, optimizer = sgd(1.0, torch.bfloat16)
    param.grad, before = torch.ones_like(param), torch.get_rng_state()
    rounded_step(optimizer, generator(14))
    assert torch.get_rng_state().equal(before)


def test_the_same_generator_rounds_the_same_and_another_does_not():
    x = torch.rand(1000, generator=generator(4))
    once, again, other = (stochastic_round(x, generator(5, "round", k)) for k in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other)


def sgd(value, dtype, rate=1e-4):
    param = nn.Parameter(torch.full((100, 100), value, dtype=dtype))
    return param, torch.optim.SGD([param], lr=rate)


def test_updates_below_bf16s_spacing_are_not_lost():
    """200 times 1e-4 off 1 is 0.98, while bf16's spacing below 1 is 0.0039. A random walk: each step's error has a
    variance of at most u·spacing, over 200 steps and 10,000 weights a standard error below 0.0001."""
    param, optimizer = sgd(1.0, torch.bfloat16)
    lost, plain = sgd(1.0, torch.bfloat16)
    for step in range(200):
        for p in (param, lost):
            p.grad = torch.ones_like(p)
        rounded_step(optimizer, generator(6, "round", step))
        plain.step()
    assert param.float().mean().item() == pytest.approx(0.98, abs=5e-4)
    assert torch.equal(lost, torch.ones_like(lost))


def test_fp32_parameters_are_updated_as_ever_and_nothing_is_drawn():
    param, optimizer = sgd(1.0, torch.float32)
    expected, plain = sgd(1.0, torch.float32)
    param.grad = expected.grad = torch.ones_like(param)
    draw = generator(7)
    rounded_step(optimizer, draw)
    plain.step()
    assert torch.equal(param, expected)
    assert torch.equal(draw.get_state(), generator(7).get_state())


@pytest.mark.parametrize("name", OFFERED)
def test_one_step_is_the_fp32_step_rounded_to_a_neighbour(name):
    """And the state is fp32 (or 8-bit), the parameter the same object in the same memory, its gradient untouched."""
    rate = 1.0 if name == "Prodigy" else 1e-2
    schedule = "constant" if name == "ScheduleFreeAdamW" else "cosine"
    config = TrainConfig(steps=9, rank=4, learning_rate=rate, optimizer=name, lr_scheduler=schedule)
    start = torch.randn(64, 80, generator=generator(8)).bfloat16()
    grad = torch.randn(64, 80, generator=generator(9)).bfloat16()
    exact, param = nn.Parameter(start.float()), nn.Parameter(start.clone())
    exact.grad, param.grad = grad.float(), grad.clone()
    memory = param.data_ptr()
    make_optimizer([{"params": [exact], "lr": rate}], config).step()
    optimizer = make_optimizer([{"params": [param], "lr": rate}], config)
    rounded_step(optimizer, generator(10))
    assert param.dtype == torch.bfloat16 and param.data_ptr() == memory and torch.equal(param.grad, grad)
    assert ((param.float() - exact).abs() <= exact.abs() * 2**-7).all()
    kept = {v.dtype for v in optimizer.state[param].values() if torch.is_tensor(v)}
    assert kept and kept <= {torch.float32, torch.uint8}


def test_training_goes_on_after_a_rounded_step():
    param, optimizer = sgd(1.0, torch.bfloat16, rate=0.5)
    losses = []  # kept, and with them autograd's notes on the parameter's type
    for step in range(2):
        losses.append(param.square().sum())
        losses[-1].backward()
        assert param.grad.dtype == torch.bfloat16
        rounded_step(optimizer, generator(11, step))
        optimizer.zero_grad()
    assert torch.equal(param, torch.zeros_like(param))  # p − 0.5 · 2p = 0


def test_a_step_that_fails_leaves_the_parameters_as_they_were():
    param, _ = sgd(1.0, torch.bfloat16)
    with pytest.raises(RuntimeError, match="out of memory"), in_fp32([param], torch.Tensor.bfloat16):
        param.data.zero_()
        raise RuntimeError("out of memory")
    assert param.dtype == torch.bfloat16 and torch.equal(param, torch.ones_like(param))
