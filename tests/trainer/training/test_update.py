"""An update that fails changes nothing."""

from __future__ import annotations

import pytest
import torch
from livelora.trainer.recipe.config import TrainConfig
from livelora.trainer.training.averaging import Averaged
from livelora.trainer.training.optim import make_optimizer
from livelora.trainer.training.update import whole_or_not_at_all
from torch import nn


class Cut(Exception):
    """Stands for memory that ran out."""


@pytest.mark.parametrize("optimizer", ["AdamW", "AdamW8bit", "Adafactor", "ScheduleFreeAdamW"])
@pytest.mark.parametrize("before", [0, 2])
def test_what_is_cut_short_is_as_if_it_had_never_begun(optimizer, before):
    average = 0.0 if optimizer == "ScheduleFreeAdamW" else 0.9
    config = TrainConfig(steps=5, rank=1, learning_rate=0.1, optimizer=optimizer, ema_decay=average,
                         lr_scheduler="constant")
    found = []
    for cut in (False, True):
        draw = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.randn(70, 70, generator=draw)) for _ in range(2)]
        made = make_optimizer([{"params": params, "lr": 0.1}], config)
        averaged = Averaged(params, made, config)
        for step in range(before + 1):
            for param in params:
                param.grad = torch.randn(param.shape, generator=draw)
            grads = [param.grad.clone() for param in params]
            if cut and step == before:
                with pytest.raises(Cut), whole_or_not_at_all(params, made, averaged):
                    made.step()
                    averaged.update()
                    raise Cut
                for param, grad in zip(params, grads, strict=True):
                    param.grad = grad  # an optimizer may change it; it is computed anew
            with whole_or_not_at_all(params, made, averaged):
                made.step()
                averaged.update()
        found.append([*params, *averaged.state()[0].values(), torch.tensor(averaged.state()[1].get("step", 0))])
    assert all(a.equal(b) for a, b in zip(*found, strict=True))
