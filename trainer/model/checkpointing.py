"""Makes a view's blocks run on copies of their inputs. Each block either keeps what its backward pass needs or computes
it again there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .transfer import Aside
from .view import lenders

Run = Callable[..., Any]


class Blocks:
    """Holds the blocks of a view, in order of execution, and says what each of them keeps for the backward pass.

    A block in `kept` keeps everything. Any other keeps its inputs alone and is computed again in the backward pass
    (Chen et al. 2016, arXiv:1604.06174). Both give the same gradients, bit for bit, so `kept` may change from one
    forward pass to the next."""

    def __init__(self, blocks: Iterable[nn.Module], *, random: bool = False, aside: Aside | None = None) -> None:
        """`random` says that the blocks draw random numbers (dropout), which are drawn again when a block is computed
        again. With `aside` the weights of the block whose turn is next are fetched there, if `holds`."""
        self.kept: Collection[int] = ()
        """The places of the blocks that keep everything."""
        self.in_ram = False
        """Whether the other blocks keep their inputs in the computer's memory instead of on the device."""
        self.holds = False
        """Whether the other blocks hold their weights while they are computed, in the backward pass until their
        gradients are there. Each weight is then fetched twice in a step instead of three times, and the weights of two
        blocks are there at once."""
        self.random, self._aside = random, aside
        self.all = [Block(self, place, block) for place, block in enumerate(blocks)]

    @contextlib.contextmanager
    def holding(self, place: int, then: int, like: Tensor) -> Iterator[None]:
        """Holds the weights of a block while inside, in the device and dtype of `like`, and begins to fetch those of
        the block `then`, whose turn is next. Does nothing unless blocks are to hold their weights."""
        if not self.holds:
            yield
            return
        own = lenders(self.all[place].module)
        for lender in own:
            lender.hold()
        if self._aside:
            self._aside.join()
            if 0 <= then < len(self.all):
                with self._aside.working():
                    for lender in lenders(self.all[then].module):
                        lender.keep(like)
        yield
        for lender in own:
            lender.let_go()

    @contextlib.contextmanager
    def nothing_held_after(self) -> Iterator[None]:
        """Gives back all weights that are held when what is inside ends, in whatever way."""
        try:
            yield
        finally:
            if self._aside:
                self._aside.join()
            for block in self.all if self.holds else ():
                for lender in lenders(block.module):
                    lender.let_go()


class Block:
    """Replaces a block's forward, which may write into its inputs, by one that works on copies of them."""

    def __init__(self, blocks: Blocks, place: int, module: nn.Module) -> None:
        self.module, self.place, self.blocks = module, place, blocks
        self._forward = type(module).forward.__get__(module)
        module.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run, given = self.as_function(args, kwargs)
        if not torch.is_grad_enabled() or self.place in self.blocks.kept:
            return run(*given)
        return self.recomputed(run)(*given)

    def recomputed(self, run: Run) -> Run:
        """Returns the block as a function that keeps its inputs alone."""
        return lambda *given: _Recomputed.apply(self, run, len(given), *given, *self.trained)

    @cached_property
    def trained(self) -> list[nn.Parameter]:
        """Returns the parameters in the block that are trained."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def as_function(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Run, list[Any]]:
        """Returns the block as a function of tensors that leaves them as they are, and those tensors: the arguments in
        order, then the tensors among the named ones."""
        names = [name for name, value in kwargs.items() if torch.is_tensor(value)]
        rest = {name: value for name, value in kwargs.items() if name not in names}
        count = len(args)  # the function must not hold the tensors themselves, because the graph holds the function

        def on_copies(*given: Any) -> Any:
            copies = [value.clone() if torch.is_tensor(value) else value for value in given]
            return self._forward(*copies[:count], **dict(zip(names, copies[count:], strict=True)), **rest)

        return on_copies, [*args, *(kwargs[name] for name in names)]


class _Recomputed(torch.autograd.Function):
    """Runs a block without keeping anything but its inputs, and runs it again for its gradients.

    The second run is an ordinary forward and backward pass of its own. So PyTorch notices a block that overwrites what
    its backward pass needs, which `torch.utils.checkpoint` would not without reentrance, and each weight that is
    borrowed for the second run serves its backward pass as well."""

    @staticmethod
    def forward(ctx, block: Block, run: Run, count: int, *given: Any) -> Any:
        inputs = given[:count]
        ctx.block, ctx.run, ctx.trained = block, run, given[count:]
        ctx.set_materialize_grads(False)
        like = next(value for value in inputs if torch.is_tensor(value) and value.is_floating_point())
        ctx.device, ctx.dtype = like.device, like.dtype
        ctx.states = _random_states(ctx.device) if block.blocks.random else None
        with block.blocks.holding(block.place, block.place + 1, like):
            result = run(*inputs)
        ctx.others = [None if torch.is_tensor(value) else value for value in inputs]
        kept = [value for value in inputs if torch.is_tensor(value)]
        ctx.save_for_backward(*(map(_to_ram, kept) if block.blocks.in_ram else kept))
        return result

    @staticmethod
    def backward(ctx, *grads: Tensor | None) -> Any:
        saved = iter(ctx.saved_tensors)
        wanted = ctx.needs_input_grad[3:]
        inputs = [other if other is not None else
                  next(saved).to(ctx.device, non_blocking=True).detach().requires_grad_(needed)
                  for other, needed in zip(ctx.others, wanted, strict=False)]
        like = next(value for value in inputs if value is not None and value.dtype == ctx.dtype)
        hold = ctx.block.blocks.holding(ctx.block.place, ctx.block.place - 1, like)
        with _same_random_numbers(ctx.device, ctx.states), torch.enable_grad(), hold:
            outputs = ctx.run(*inputs)
            pairs = [(out, grad) for out, grad in zip(_listed(outputs), grads, strict=True)
                     if grad is not None and out.requires_grad]
            leaves = [value for value, needed in zip((*inputs, *ctx.trained), wanted, strict=True) if needed]
            found = iter(_gradients(ctx.block.module, pairs, leaves))
        return None, None, None, *(next(found) if needed else None for needed in wanted)


def _gradients(block: nn.Module, pairs: list[tuple[Tensor, Tensor]], leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Returns the gradients at `leaves`. Raises RuntimeError, with the block's name, if it overwrites what it needs."""
    if not pairs:
        return (None,) * len(leaves)
    outputs, grads = zip(*pairs, strict=True)
    with named_overwriting(block):
        return torch.autograd.grad(outputs, leaves, grads, allow_unused=True)


@contextlib.contextmanager
def named_overwriting(block: nn.Module) -> Iterator[None]:
    """Gives PyTorch's error about a tensor that was overwritten before its backward pass the name of the block."""
    try:
        yield
    except RuntimeError as err:
        if "inplace operation" not in str(err):
            raise
        raise RuntimeError(f"The model cannot be trained: its block {type(block).__name__} overwrites numbers that its "
                           "gradients depend on, so that the LoRA would learn something wrong. Please report the model "
                           f"to LiveLoRA. ({err})") from err


def _random_states(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Returns the states of the generators that a block draws from: the CPU's, and the device's if that is another."""
    on_device = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    return torch.get_rng_state(), on_device


@contextlib.contextmanager
def _same_random_numbers(device: torch.device, states: tuple[Tensor, Tensor | None] | None) -> Iterator[None]:
    """Puts the generators back into these states while inside, if any are given."""
    if states is None:
        yield
        return
    on_cpu, on_device = states
    with torch.random.fork_rng([] if on_device is None else [device], device_type=device.type):
        torch.set_rng_state(on_cpu)
        if on_device is not None:
            torch.get_device_module(device).set_rng_state(on_device, device)
        yield


def _listed(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _to_ram(value: Tensor) -> Tensor:
    """Returns a copy in the computer's memory, pinned if the device can then read it without waiting for the CPU."""
    if value.device.type != "cuda":
        return value.to("cpu")
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
