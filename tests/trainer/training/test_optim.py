"""Every optimizer is the real one and takes the step its paper says; where an 8-bit one cannot work, a warning and the
next best. Schedules against their closed formulas."""

from __future__ import annotations

import math
import sys
from typing import get_args

import numpy as np
import pytest
import torch
from livelora.trainer.disk.packages import require
from livelora.trainer.recipe.choices import LRScheduler
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.recipe.optimizers import OFFERED, OPTIMIZERS
from livelora.trainer.training import optim
from torch import nn

BITSANDBYTES = [name for name in OFFERED if name.endswith("8bit")]
LR = 1e-2


def params():
    return [nn.Parameter(torch.randn(64, 128, generator=torch.Generator().manual_seed(1)))]


def config(optimizer="AdamW8bit", **change):
    rate = 1.0 if optimizer == "Prodigy" else LR
    schedule = "constant" if optimizer == "ScheduleFreeAdamW" else "cosine"
    return TrainConfig(**{"steps": 100, "rank": 4, "learning_rate": rate, "optimizer": optimizer,
                          "lr_scheduler": schedule, **change})


def make(made, recipe):
    return optim.make_optimizer([{"params": made, "lr": recipe.learning_rate}], recipe)


def first_step(name, **change):
    """A parameter before and after one step along a gradient of ±1, and the gradient."""
    [param] = made = params()
    optimizer = make(made, config(name, **change))
    before = param.detach().clone()
    param.grad = torch.sign(before)
    optimizer.step()
    return before, param.detach(), torch.sign(before)


def test_adamw8bit_is_real_and_keeps_its_state_in_8_bits():
    [param] = made = params()
    optimizer = make(made, config())
    assert type(optimizer).__module__.startswith("bitsandbytes")
    before = param.detach().clone()
    param.grad = torch.sign(before)
    optimizer.step()
    assert optimizer.state[param]["state1"].dtype == torch.uint8
    # AdamW's first step: lr · sign(grad) + lr · decay · param (Loshchilov and Hutter, arXiv:1711.05101)
    torch.testing.assert_close(param.detach(), before - LR * torch.sign(before) - 1e-4 * before, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", OFFERED)
def test_each_name_gives_the_optimizer_of_that_name(name):
    assert type(make(params(), config(name))).__name__ == name


@pytest.mark.parametrize("name", OFFERED)
def test_each_group_keeps_its_own_learning_rate_and_all_have_the_weight_decay(name):
    groups = [{"params": params(), "lr": 0.5}, {"params": params(), "lr": 0.25}]
    optimizer = optim.make_optimizer(groups, config(name, weight_decay=0.125))
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.25]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.125, 0.125]
    assert groups == [{"params": [groups[0]["params"][0]], "lr": 0.5}, {"params": [groups[1]["params"][0]], "lr": 0.25}]


def test_a_recipe_that_erases_gives_an_optimizer_with_a_learning_rate_above_0():
    erasing = config(erase=True, learning_rate=-LR)
    assert optim.make_optimizer([{"params": params(), "lr": LR}], erasing).defaults["lr"] == LR


@pytest.mark.parametrize("name", ["AdamW", "PagedAdamW8bit"])
def test_the_first_step_of_adamw(name):
    """lr · sign(grad) + lr · decay · param: Loshchilov and Hutter (arXiv:1711.05101)."""
    before, after, grad = first_step(name)
    torch.testing.assert_close(after, before - LR * grad - LR * 0.01 * before, atol=1e-6, rtol=0)


def test_the_first_step_of_lion():
    """lr · sign(grad) + lr · decay · param: Chen et al. 2023 (arXiv:2302.06675), algorithm 2."""
    before, after, grad = first_step("Lion8bit", weight_decay=0.1)
    torch.testing.assert_close(after, before - LR * grad - LR * 0.1 * before, atol=1e-6, rtol=0)


def test_the_first_step_of_ademamix_has_hardly_any_slow_average_yet():
    """Pagliardini et al. 2024 (arXiv:2409.03137), algorithm 1: sign(grad) · (1 + α₁(1 − β₃₁)). At step 1 of 100, α₁ =
    5 / 100 and ln β₃₁ = ln 0.9 · ln 0.999 / (0.99 ln 0.999 + 0.01 ln 0.9) = −0.05157, so 1 + 0.05 · 0.05026."""
    before, after, grad = first_step("AdEMAMix8bit", weight_decay=0.0)
    torch.testing.assert_close(after, before - LR * grad * 1.002513, atol=1e-6, rtol=0)


def test_the_slow_average_of_ademamix_is_in_full_effect_at_the_end_of_the_run():
    """Only one step: α = 5 and β₃ = 0.999, so 1 + 5 · 0.001. The state's 8 bits come after the step."""
    before, after, grad = first_step("AdEMAMix8bit", weight_decay=0.0, steps=1)
    torch.testing.assert_close(after, before - LR * grad * 1.005, atol=1e-6, rtol=0)


def test_adafactor_moves_a_matrix_of_zeros_by_the_learning_rate():
    """LoRA's B. With `scale_parameter` it would be a thousandth of that (Shazeer and Stern 2018, arXiv:1804.04235)."""
    param = nn.Parameter(torch.zeros(64, 128))
    param.grad = torch.sign(torch.randn(64, 128, generator=torch.Generator().manual_seed(2)))
    make([param], config("Adafactor")).step()
    torch.testing.assert_close(param.detach(), -LR * param.grad)


def test_three_steps_of_came():
    """Against algorithm 2 of Luo et al. 2023 (arXiv:2307.02047) in float64 numpy, without weight decay."""
    draw, (b1, b2, b3) = np.random.default_rng(3), (0.9, 0.999, 0.9999)
    theta = draw.normal(size=(8, 6))
    param = nn.Parameter(torch.tensor(theta, dtype=torch.float32))
    optimizer = make([param], config("CAME", weight_decay=0.0))
    m, r, c, big_r, big_c = np.zeros((8, 6)), np.zeros(8), np.zeros(6), np.zeros(8), np.zeros(6)
    for _ in range(3):
        grad = draw.normal(size=(8, 6))
        r = b2 * r + (1 - b2) * (grad**2).mean(1)
        c = b2 * c + (1 - b2) * (grad**2).mean(0)
        u = grad / np.sqrt(np.outer(r, c) / r.mean())
        u /= max(1, np.sqrt((u**2).mean()))
        m = b1 * m + (1 - b1) * u
        big_r = b3 * big_r + (1 - b3) * ((u - m)**2).mean(1)
        big_c = b3 * big_c + (1 - b3) * ((u - m)**2).mean(0)
        theta -= LR * m / np.sqrt(np.outer(big_r, big_c) / big_r.mean())
        param.grad = torch.tensor(grad, dtype=torch.float32)
        optimizer.step()
    np.testing.assert_allclose(param.detach().numpy(), theta, atol=1e-4)


def test_two_steps_of_prodigy_in_a_warm_up():
    """Algorithm 4 of Mishchenko and Defazio 2023 (arXiv:2306.06101) with Adam's bias correction, at half the rate and a
    gradient of 1. Step 1: half of d₀ = 1e-6. Step 2: its rate is 0.5e-6 · √(1 − 0.999²) / (1 − 0.9²) = 1.1766e-7, and
    d̂ = 1.1766e-7 · 0.5e-6 / s, where s = (√0.999 + 1) · 1e-6, as the safeguard keeps the warm-up out of it."""
    param = nn.Parameter(torch.zeros(10))
    optimizer = make([param], config("Prodigy", weight_decay=0.0, learning_rate=0.5))
    param.grad = torch.ones(10)
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((10,), -0.5e-6), atol=1e-10, rtol=0)
    optimizer.step()
    assert optimizer.param_groups[0]["d_hat"] == pytest.approx(2.942e-8, rel=1e-3)


def test_prodigy_finds_a_learning_rate():
    """From d0 = 1e-6 it must come to the order of the distance to the optimum, 3 (Mishchenko and Defazio 2023,
    arXiv:2306.06101)."""
    param = nn.Parameter(torch.zeros(10))
    optimizer = make([param], config("Prodigy", weight_decay=0.0))
    for _ in range(300):
        (param - 3).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert 0.03 < optimizer.param_groups[0]["d"] < 30
    torch.testing.assert_close(param.detach(), torch.full((10,), 3.0), atol=0.05, rtol=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_its_row_says_what_an_optimizer_keeps(name):
    """For 2²⁰ values; beside them it may keep rows, columns, maps and counts: less than a tenth of a value for each."""
    param = nn.Parameter(torch.randn(1024, 1024, generator=torch.Generator().manual_seed(1)))
    row = OPTIMIZERS[name]
    optimizer = getattr(require(row.module), name)([param], lr=LR, **row.settings(100))
    for _ in range(2):
        param.grad = torch.sign(param.detach())
        optimizer.step()
    kept = sum(value.numel() * value.element_size() for value in optimizer.state[param].values()
               if torch.is_tensor(value))
    expected = row.moments * (1 if row.eight_bit else 4)
    assert expected <= kept / param.numel() < expected + 0.1


@pytest.mark.parametrize("name", OFFERED)
def test_a_first_step_without_any_gradient_breaks_nothing(name):
    """LoRA's A has none in the first step, as B is 0: an optimizer divides 0 by 0 if it is not careful."""
    [param] = made = params()
    optimizer = make(made, config(name, weight_decay=0.0))
    for k in range(3):
        before = param.detach().clone()
        param.grad = torch.full_like(param, float(k > 0))
        optimizer.step()
        assert torch.isfinite(param).all()
        assert torch.equal(param, before) == (k == 0)


class Broken(torch.optim.AdamW):
    """Stands for a driver or platform that bitsandbytes' native library does not know."""

    def __init__(self, params, lr, weight_decay, **_):
        super().__init__(params, lr=lr, weight_decay=weight_decay)

    def step(self, closure=None):
        raise RuntimeError("no 8-bit kernel for this device")


@pytest.mark.parametrize(("name", "next_best"), [
    ("AdamW8bit", "AdamW"), ("PagedAdamW8bit", "AdamW8bit"), ("AdEMAMix8bit", "AdEMAMix"), ("Lion8bit", "Lion")])
def test_an_8_bit_optimizer_that_does_not_work_gives_a_warning_and_the_next_best(monkeypatch, caplog, name, next_best):
    import bitsandbytes

    monkeypatch.setattr(bitsandbytes.optim, name, Broken)
    assert type(make(params(), config(name))).__name__ == next_best
    assert f"{name} does not work here (no 8-bit kernel for this device). Training goes on with " in caplog.text
    assert len(caplog.records) == 1


def test_windows_does_not_page(monkeypatch, caplog):
    monkeypatch.setattr(optim, "WINDOWS", True)
    assert type(make(params(), config("PagedAdamW8bit"))).__name__ == "AdamW8bit"
    assert "PagedAdamW8bit does not work here (Windows does not page a GPU's memory" in caplog.text


@pytest.mark.parametrize("name", BITSANDBYTES)
def test_a_library_that_does_not_load_gives_a_warning_and_plain_adamw(monkeypatch, caplog, name):
    import bitsandbytes

    for each in (*BITSANDBYTES, *(OPTIMIZERS[name].instead for name in BITSANDBYTES if name != "AdamW8bit")):
        monkeypatch.setattr(bitsandbytes.optim, each, Broken)
    optimizer = make(params(), config(name))
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["betas"] == (0.9, 0.999) and optimizer.defaults["weight_decay"] == 0.01
    assert "Training goes on with plain AdamW" in caplog.text


@pytest.mark.parametrize(("package", "optimizer"), [
    ("bitsandbytes", "AdamW"), ("peft", "AdamW"), ("diffusers", "AdamW"), ("transformers", "Adafactor"),
    ("pytorch-optimizer", "Prodigy"), ("pytorch-optimizer", "ScheduleFreeAdamW"), ("pytorch-optimizer", "CAME")])
def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch, package, optimizer):
    from livelora.trainer.disk import packages

    module = package.replace("-", "_")
    monkeypatch.setitem(sys.modules, module, None)  # Python then says it is not there
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None if name == module else object())
    with pytest.raises(RuntimeError) as caught:
        packages.check_all(optim.packages_for(config(optimizer)))
    assert f"needs the Python package '{package}'" in str(caught.value)
    assert str(caught.value).endswith(f'"{sys.executable}" -m pip install {package}')


def test_an_optimizer_from_an_optional_package_is_not_missed_by_others(monkeypatch):
    from livelora.trainer.disk import packages

    monkeypatch.setattr(packages.importlib.util, "find_spec",
                        lambda name: None if name == "pytorch_optimizer" else object())
    packages.check_all(optim.packages_for(config("AdamW8bit")))


def rates(**change):
    [param] = made = params()
    optimizer = torch.optim.SGD(made, lr=1.0)
    schedule, found = optim.make_lr_scheduler(optimizer, config(**change)), []
    for _ in range(100):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_cosine():
    assert rates() == pytest.approx([(1 + math.cos(math.pi * k / 100)) / 2 for k in range(100)])


def test_linear_with_warmup():
    expected = [min(k / 10, (100 - k) / 90) for k in range(100)]
    assert rates(lr_scheduler="linear", lr_warmup_steps=10) == pytest.approx(expected)


def test_constant_with_warmup():
    assert rates(lr_scheduler="constant", lr_warmup_steps=4) == pytest.approx([0, 0.25, 0.5, 0.75] + [1] * 96)


def test_cosine_with_restarts():
    """Loshchilov and Hutter 2017 (arXiv:1608.03983), equation 5, with two periods of 50."""
    expected = [(1 + math.cos(math.pi * (k % 50) / 50)) / 2 for k in range(100)]
    assert rates(lr_scheduler="cosine_with_restarts", lr_cycles=2) == pytest.approx(expected)


def test_polynomial_ends_at_0():
    expected = [k / 10 if k < 10 else (1 - (k - 10) / 90)**2 for k in range(100)]
    assert rates(lr_scheduler="polynomial", lr_power=2.0, lr_warmup_steps=10) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("decay", [1, 30])
def test_wsd_is_that_of_transformers(warmup, decay):
    from transformers.optimization import get_wsd_schedule

    optimizer = torch.optim.SGD(params(), lr=1.0)
    theirs, expected = get_wsd_schedule(optimizer, warmup, decay, num_training_steps=100, decay_type="linear"), []
    for _ in range(100):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert rates(lr_scheduler="wsd", lr_warmup_steps=warmup, lr_decay_steps=decay) == pytest.approx(expected)


def test_wsd_decays_over_a_tenth_of_the_run_if_not_told():
    assert rates(lr_scheduler="wsd") == pytest.approx([1] * 91 + [0.1 * k for k in range(9, 0, -1)])


@pytest.mark.parametrize("schedule", get_args(LRScheduler))
def test_every_schedule_can_be_warm_up_alone(schedule):
    """It is also asked for the rate after the last step, which no update uses."""
    assert rates(lr_scheduler=schedule, lr_warmup_steps=100)[:90] == pytest.approx([k / 100 for k in range(90)])


@pytest.mark.parametrize("schedule", [s for s in get_args(LRScheduler) if s != "constant"])
def test_a_schedule_spans_the_steps_a_run_was_extended_by(schedule):
    assert rates(lr_scheduler=schedule, steps=60, extra_steps=40) == rates(lr_scheduler=schedule, steps=100)
