"""Makes an update happen whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..model.transfer import copies
from .averaging import Averaged


@contextmanager
def whole_or_not_at_all(params: list[nn.Parameter], optimizer: torch.optim.Optimizer,
                        averaged: Averaged) -> Iterator[None]:
    """If the code inside raises, puts parameters, the optimizer's state and the averages back as they were, bit for
    bit. That takes no memory of the device, of which there may be none left.

    Optimizers change one tensor after another in place and take memory in between, so that an error leaves some
    changed and others not. What was done to them cannot be undone by computing, so they are copied beforehand, at a
    time when the activations are gone: to their own device, or to the CPU if they do not fit there."""
    entries = {param: dict(values) for param, values in optimizer.state.items()}
    groups = [dict(group) for group in optimizer.param_groups]
    averages = averaged.ema.shadow_params if averaged.ema else []
    count = averaged.ema.optimization_step if averaged.ema else 0
    tensors = _tensors([*params, *averages, *entries.values(), *groups])
    kept = copies(tensors)
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, copy in zip(tensors, kept, strict=True):
                tensor.copy_(copy)
        optimizer.state.clear()
        optimizer.state.update(entries)
        for group, values in zip(optimizer.param_groups, groups, strict=True):
            group.clear()
            group.update(values)
        if averaged.ema:
            averaged.ema.optimization_step = count
        raise


def _tensors(values: list[Any]) -> list[Tensor]:
    """Returns all tensors among values and among the values of dicts, each once. Data is taken for a parameter, because
    the parameter may get other data meanwhile."""
    found = [v for value in values for v in (value.values() if isinstance(value, dict) else [value])]
    return [*{id(v): v.data for v in found if torch.is_tensor(v)}.values()]
