"""Keeps bf16 parameters from losing small updates: the optimizer computes in fp32, and the result is rounded
stochastically."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn


def stochastic_round(x: Tensor, draw: torch.Generator) -> Tensor:
    """Rounds fp32 to bf16, up or down at random, so that the result is x on average (Gupta et al. 2015,
    arXiv:1502.02551, section 3; for bf16 weights Zamirai et al. 2020, arXiv:2010.06192).

    bf16 is the upper half of fp32's bits: 16 random bits are added to the lower half, and the carry decides. Values
    that bf16 can hold, infinity and NaN stay as they are. `draw` is on the CPU, so every device rounds the same way."""
    noise = torch.randint(-1 << 15, 1 << 15, x.shape, dtype=torch.int16, generator=draw).to(x.device)
    bits = x.view(torch.int32) + (noise.to(torch.int32) & 0xFFFF)
    rounded = (bits & -0x10000).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x).to(torch.bfloat16)


@contextmanager
def in_fp32(params: Iterable[nn.Parameter], narrow: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Turns bf16 parameters and their gradients into fp32 while inside. At the end `narrow` (fp32 → bf16) turns the
    parameters back, and the gradients are as before. If the code inside raises, the parameters too are as before."""
    kept = [(p, p.data, p.grad) for p in params if p.dtype == torch.bfloat16]
    try:
        for param, data, grad in kept:
            _set(param, data.float(), None if grad is None else grad.float())
        yield
        for param, data, _ in kept:
            data.copy_(narrow(param.data))
    finally:
        for param, data, grad in kept:
            _set(param, data, grad)


def rounded_step(optimizer: torch.optim.Optimizer, draw: torch.Generator) -> None:
    """Calls `optimizer.step()`, but updates bf16 parameters in fp32 and rounds them stochastically. Its state is fp32.

    During the step each bf16 parameter takes 8 bytes more, at a time when the activations are gone. fp32 parameters are
    updated as they are, and nothing is drawn for them."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    with in_fp32(params, partial(stochastic_round, draw=draw)):
        optimizer.step()


def _set(param: nn.Parameter, data: Tensor, grad: Tensor | None) -> None:
    """Replaces data and gradient as `nn.Module.to` does: optimizers know the Parameter by its object, which stays."""
    param.grad = None  # it has the old type, which the new data would not accept
    param.data = data
    param.grad = grad
