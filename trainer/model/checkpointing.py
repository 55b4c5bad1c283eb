"""Makes a view's blocks run on copies of their inputs, and recomputes them in the backward pass if asked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def isolate(blocks: Iterable[nn.Module], *, recompute: bool, random: bool = False) -> None:
    """Makes each block run on copies of its inputs, because a transformer block may write into them. With `recompute`
    it also runs under activation checkpointing (Chen et al. 2016, arXiv:1604.06174). The copies are then made inside,
    so that the kept inputs stay as they were. `random` says that the blocks draw random numbers (dropout), which the
    recomputation has to draw again."""
    for block in blocks:
        block.forward = _Isolated(block, recompute, random)


class _Isolated:
    def __init__(self, block: nn.Module, recompute: bool, random: bool) -> None:
        self._run, self._recompute, self._random = type(block).forward.__get__(block), recompute, random

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        names = [name for name, value in kwargs.items() if torch.is_tensor(value)]
        rest = {name: value for name, value in kwargs.items() if name not in names}

        def on_copies(*given: Any) -> Any:
            copies = [value.clone() if torch.is_tensor(value) else value for value in given]
            return self._run(*copies[:len(args)], **dict(zip(names, copies[len(args):], strict=True)), **rest)

        given = [*args, *(kwargs[name] for name in names)]  # as arguments: hidden in a container, autograd misses them
        if not (self._recompute and torch.is_grad_enabled()):
            return on_copies(*given)
        return checkpoint(on_copies, *given, use_reentrant=False, preserve_rng_state=self._random)
