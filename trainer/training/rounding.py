"""Keeps bf16 parameters from losing small updates: the optimizer computes in fp32, and the result is rounded
stochastically."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

OWN_GENERATORS = ("cuda", "xpu")
"""The kinds of devices that draw random numbers themselves."""


def stochastic_round(x: Tensor, draw: torch.Generator) -> Tensor:
    """Rounds fp32 to bf16, up or down at random, so that the result is x on average (Gupta et al. 2015,
    arXiv:1502.02551, section 3; for bf16 weights Zamirai et al. 2020, arXiv:2010.06192).

    bf16 is the upper half of fp32's bits: 16 random bits are added to the lower half, and the carry decides. Values
    that bf16 can hold, infinity and NaN stay as they are."""
    bits = _random_bits(x.numel(), draw).view(x.shape).to(x.device, torch.int32).bitwise_and_(0xFFFF)
    rounded = bits.add_(x.view(torch.int32)).bitwise_and_(-0x10000).view(torch.float32)
    return torch.where(x.isnan(), x, rounded).to(torch.bfloat16)


def _random_bits(count: int, draw: torch.Generator) -> Tensor:
    """Returns 16 random bits for each of `count` values, int16, on the generator's device. Four of them are drawn at
    once, which takes a third of the time."""
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=draw.device)
    return words.random_(-(1 << 63), None, generator=draw).view(torch.int16)[:count]


def _on(device: torch.device, draw: torch.Generator) -> torch.Generator:
    """Returns a generator on `device` with the seed of `draw`; `draw` itself if the device has none of its own."""
    if device.type not in OWN_GENERATORS:
        return draw
    return torch.Generator(device).manual_seed(draw.initial_seed())


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
    updated as they are, and nothing is drawn for them. A GPU draws by itself, from the seed of `draw`."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    with in_fp32(params, partial(stochastic_round, draw=_on(params[0].device, draw))):
        optimizer.step()


def _set(param: nn.Parameter, data: Tensor, grad: Tensor | None) -> None:
    """Replaces data and gradient as `nn.Module.to` does: optimizers know the Parameter by its object, which stays."""
    param.grad = None  # it has the old type, which the new data would not accept
    param.data = data
    param.grad = grad
