"""The 8-bit optimizer is bitsandbytes' real one, also on the CPU; where it cannot work, a warning and plain AdamW."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from livelora.trainer import optim
from livelora.trainer.config import TrainConfig
from torch import nn


def params():
    return [nn.Parameter(torch.randn(64, 128, generator=torch.Generator().manual_seed(1)))]


def config(**change):
    return TrainConfig(**{"steps": 100, "rank": 4, "learning_rate": 1e-2, **change})


def test_adamw8bit_is_real_and_keeps_its_state_in_8_bits():
    [param] = made = params()
    optimizer = optim.make_optimizer(made, config())
    assert type(optimizer).__module__.startswith("bitsandbytes")
    before = param.detach().clone()
    param.grad = torch.sign(before)
    optimizer.step()
    assert optimizer.state[param]["state1"].dtype == torch.uint8
    # AdamW's first step: lr · sign(grad) + lr · decay · param (Loshchilov and Hutter, arXiv:1711.05101)
    torch.testing.assert_close(param.detach(), before - 1e-2 * torch.sign(before) - 1e-4 * before, atol=1e-4, rtol=0)


def test_a_library_that_does_not_load_gives_a_warning_and_plain_adamw(monkeypatch, caplog):
    """Stands for a driver or platform that bitsandbytes' native library does not know."""
    import bitsandbytes

    class Broken(torch.optim.AdamW):
        def step(self, closure=None):
            raise RuntimeError("no 8-bit kernel for this device")

    monkeypatch.setattr(bitsandbytes.optim, "AdamW8bit", Broken)
    optimizer = optim.make_optimizer(params(), config())
    assert type(optimizer) is torch.optim.AdamW
    assert "8-bit AdamW does not work here (no 8-bit kernel for this device)" in caplog.text


@pytest.mark.parametrize("package", ["bitsandbytes", "peft", "diffusers"])
def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch, package):
    from livelora.trainer import packages

    monkeypatch.setitem(sys.modules, package, None)  # Python then says it is not there
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(RuntimeError) as caught:
        packages.check_all()
    assert f'"{sys.executable}" -m pip install {package}' in str(caught.value)


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
