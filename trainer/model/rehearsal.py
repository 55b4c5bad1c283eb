"""Takes a step on tensors without values, and counts the bytes and the operations that a real one will need.

One block of each kind is run, once keeping everything and once computed again in the backward pass. All others are
passed over with outputs of the right shapes, so that this takes a second for a model of any size, and no memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from .checkpointing import Block, Blocks, Run, named_overwriting
from .counting import Live, WithoutValues, drop_values
from .view import copied_once


@dataclass(frozen=True, slots=True)
class Pass:
    """Says what a forward or a backward pass does to the memory, in bytes above what was in use before."""

    peak: int
    left: int
    """What is in use afterwards."""
    flop: int
    """The floating-point operations."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Holds what a block costs in one way of running it."""

    forward: Pass
    backward: Pass


@dataclass(frozen=True, slots=True)
class BlockCost:
    """Holds what a block costs in each way of running it."""

    kept: Cost
    """Everything is kept from the forward to the backward pass."""
    again: Cost
    """The inputs alone are kept, and the block is computed again."""
    holding: Cost
    """The same, and its weights are held until its gradients are there, with those of the block whose turn is next. If
    no weights are streamed this is not rehearsed, and is the same as `again`."""
    copies: int
    """The bytes of the copies that are made for it once a step (see `copied_once`)."""

    @property
    def flop(self) -> int:
        """Returns the operations of its forward pass, which keeping everything saves."""
        return self.kept.forward.flop

    @property
    def kept_bytes(self) -> int:
        """Returns how many bytes more it takes to keep everything than to keep the inputs."""
        return self.kept.forward.left - self.again.forward.left


@dataclass(frozen=True, slots=True)
class _Moment:
    """Holds a moment of the rehearsed step, in which every block is computed again: between two blocks, or at one."""

    used: int
    """The bytes in use; between two blocks the most."""
    done: int
    """How many blocks hold what they keep, if they keep everything."""
    inputs: int
    """The bytes of the inputs that the blocks hold, without those of the block that runs."""
    place: int | None = None
    """The block that runs, if one does."""
    backward: bool = False


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """Holds the costs of a batch of one size: its activations and gradients, without weights, adapter and optimizer."""

    blocks: tuple[BlockCost, ...]
    first: tuple[_Moment, ...]
    """The moments of a step's first batch."""
    further: tuple[_Moment, ...]
    """The moments of a batch after it, when the adapter's gradients are there already."""
    other_flop: int
    """The operations outside of the blocks."""
    copies: int
    """The bytes of the copies that are made once a step for the blocks which did not run."""

    def peak(self, kept: Collection[int] = (), *, further: bool = False, in_ram: bool = False,
             holds: bool = False) -> int:
        """Returns the largest number of bytes in use, if the blocks in `kept` keep everything. `further`: if the step
        has more than one batch. `in_ram` and `holds`: see `Blocks`."""
        extra, sums = 0, [0]
        for place, block in enumerate(self.blocks):
            extra += block.kept_bytes if place in kept else 0
            sums.append(extra)
        return self.copies + max(
            moment.used + sums[moment.done] + self._own(moment, kept, holds) - in_ram * moment.inputs
            for moment in (*self.first, *(self.further if further else ())))

    def _own(self, moment: _Moment, kept: Collection[int], holds: bool) -> int:
        if moment.place is None:
            return 0
        block = self.blocks[moment.place]
        cost = block.kept if moment.place in kept else block.holding if holds else block.again
        return (cost.backward if moment.backward else cost.forward).peak

    def flop(self, kept: Collection[int] = ()) -> int:
        """Returns the operations of forward and backward pass."""
        return self.other_flop + sum(block.flop * (1 if place in kept else 2) + block.kept.backward.flop
                                     for place, block in enumerate(self.blocks))


class Rehearsal:
    """Rehearses steps with a view without memory, which becomes useless for anything else."""

    def __init__(self, view: nn.Module, blocks: Blocks, device: torch.device) -> None:
        """`view` has its adapter, and `blocks` are its blocks. `device` is where a real step would run."""
        self._mode = WithoutValues(allow_non_fake_inputs=True)
        with self._mode:
            drop_values(view, device)
        self.view, self.blocks, self.live = view, blocks, Live([*view.parameters(), *view.buffers()])
        self._params = [p for p in view.parameters() if p.requires_grad]
        self.known: dict[Any, tuple[BlockCost, list[Any]]] = {}
        self.costs: dict[int, BlockCost] = {}
        self.moments: list[_Moment] = []
        self.copies = 0
        """The bytes of the copies that were made for blocks that ran."""
        self.inputs: list[int] = []
        """The bytes that each block before the present one holds as its inputs."""
        self._held: weakref.WeakSet[Any] = weakref.WeakSet()
        for block in blocks.all:
            block.module.forward = _StandIn(self, block)

    def take(self, loss: Callable[[], Tensor]) -> Rehearsed:
        """Returns what a step costs that begins with `loss`, which computes a loss with the view and makes every tensor
        that it needs. Raises RuntimeError, with the block's name, if a block overwrites what its gradients depend on.
        """
        for param in self._params:
            param.grad = None
        self.copies = 0
        # A device's own thread of autograd would give back what it holds some time after the backward pass.
        with self._mode, self.live, copied_once(self.view), torch.autograd.set_multithreading_enabled(False):
            first = self._taken(loss)
            self.live.flop = 0  # every block is known by now, so that what follows are the others' operations
            further = self._taken(loss)
        costs = tuple(self.costs[block.place] for block in self.blocks.all)
        return Rehearsed(costs, first, further, self.live.flop, sum(cost.copies for cost in costs) - self.copies)

    def _taken(self, loss: Callable[[], Tensor]) -> tuple[_Moment, ...]:
        """Returns the moments of one forward and backward pass."""
        self.moments, self.inputs = [], []
        self.live.mark()
        loss().backward()
        self.gap(0)
        return tuple(self.moments)

    def gap(self, done: int) -> None:
        """Notes the most bytes since the last block, when so many blocks hold what they keep."""
        self.moments.append(_Moment(self.live.peak, done, sum(self.inputs[:done])))
        self.live.mark()

    def forward(self, place: int, inputs: list[Tensor]) -> None:
        """Notes that a block's forward pass begins."""
        self.gap(place)
        self.moments.append(_Moment(self.live.now, place, sum(self.inputs), place))
        new = {value.untyped_storage() for value in inputs} - {*self._held}
        self._held.update(new)
        self.inputs.append(sum(storage.nbytes() for storage in new))

    def backward(self, place: int) -> None:
        """Notes that a block's backward pass begins."""
        self.gap(place + 1)
        self.moments.append(_Moment(self.live.now, place + 1, sum(self.inputs[:place]), place, backward=True))

    def cost_of(self, block: Block, run: Run, given: list[Any]) -> tuple[BlockCost, list[Any]]:
        """Returns what a block costs, and tensors like its outputs."""
        before = self.blocks.all[block.place - 1].module if block.place and self.blocks.holds else None
        key = (*_kind(block.module), before and _kind(before),
               *((v.shape, v.dtype, v.requires_grad) if torch.is_tensor(v) else None for v in given))
        if key not in self.known:
            peak = self.live.peak
            self.known[key] = _measured(self.live, block, run, given)
            self.copies += self.known[key][0].copies
            self.live.peak = peak
        return self.known[key]


class _StandIn:
    """Replaces a block while a step is rehearsed: notes the moment, and passes the block over."""

    def __init__(self, rehearsal: Rehearsal, block: Block) -> None:
        self.rehearsal, self.block = rehearsal, block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run, given = self.block.as_function(args, kwargs)
        cost, outputs = self.rehearsal.cost_of(self.block, run, given)
        self.rehearsal.costs[self.block.place] = cost
        self.rehearsal.forward(self.block.place, [value for value in given if torch.is_tensor(value)])
        made = _PassedOver.apply(self, outputs, len(given), *given, *self.block.trained)
        return made if len(outputs) > 1 else made[0]


class _PassedOver(torch.autograd.Function):
    """Keeps a block's inputs, and makes tensors like its outputs and its gradients."""

    @staticmethod
    def forward(ctx, stand_in: _StandIn, outputs: list[Any], count: int, *given: Any) -> tuple[Tensor, ...]:
        ctx.stand_in = stand_in
        ctx.save_for_backward(*(value for value in given[:count] if torch.is_tensor(value)))
        ctx.shapes = [(value.shape, value.dtype, value.device) if torch.is_tensor(value) else None for value in given]
        return tuple(torch.empty(shape, dtype=dtype, device=device) for shape, dtype, device in outputs)

    @staticmethod
    def backward(ctx, *grads: Tensor | None) -> Any:
        ctx.saved_tensors  # noqa: B018  they live until here
        ctx.stand_in.rehearsal.backward(ctx.stand_in.block.place)
        made = [torch.empty(like[0], dtype=like[1], device=like[2]) if needed and like else None
                for like, needed in zip(ctx.shapes, ctx.needs_input_grad[3:], strict=True)]
        return None, None, None, *made


def _measured(live: Live, block: Block, run: Run, given: list[Any]) -> tuple[BlockCost, list[Any]]:
    """Returns what a block costs, by running it, and tensors like its outputs."""
    before = live.now
    with torch.no_grad():
        run(*(_like(value) if torch.is_tensor(value) else value for value in given))
    copies = live.now - before
    with named_overwriting(block.module):
        kept, outputs = _cost(live, block, given, run)
    holds, block.blocks.holds = block.blocks.holds, False
    again, _ = _cost(live, block, given, block.recomputed(run))
    block.blocks.holds = holds
    if not holds:
        return BlockCost(kept, again, again, copies), outputs
    with block.blocks.nothing_held_after():
        holding, _ = _cost(live, block, given, block.recomputed(run))
    return BlockCost(kept, again, holding, copies), outputs


def _kind(block: nn.Module) -> tuple[Any, ...]:
    """Returns what tells blocks of different costs apart."""
    return type(block), *((name, p.shape, p.dtype, p.requires_grad) for name, p in block.named_parameters())


def _cost(live: Live, block: Block, given: list[Any], run: Run) -> tuple[Cost, list[Any]]:
    values = [_like(value) if torch.is_tensor(value) else value for value in given]
    edges = [get_gradient_edge(value) for value in values if torch.is_tensor(value) and value.requires_grad]
    before, flop = live.mark(), live.flop
    result = run(*values)
    values.clear()
    forward = Pass(live.peak - before, live.now - before, live.flop - flop)
    outputs = result if isinstance(result, tuple) else (result,)
    shapes = [(out.shape, out.dtype, out.device) for out in outputs]
    began: list[int] = []
    end = _End.apply(live, began, *outputs)
    del result, outputs
    leaves = [*edges, *block.trained]
    if not (end.requires_grad and leaves):
        return Cost(forward, Pass(0, 0, 0)), shapes
    flop, found = live.flop, torch.autograd.grad(end, leaves, allow_unused=True)
    backward = Pass(live.peak - began[0], live.now - began[0], live.flop - flop)
    del found
    return Cost(forward, backward), shapes


def _like(value: Tensor) -> Tensor:
    """Returns a tensor like one that a forward pass computed: nothing but its users holds it."""
    new = torch.empty((1,) * value.dim(), dtype=value.dtype, device=value.device)
    return new.requires_grad_(value.requires_grad).expand(value.shape).clone()


class _End(torch.autograd.Function):
    """Makes gradients for a block's outputs, as the block behind it would, and begins to count there."""

    @staticmethod
    def forward(ctx, live: Live, began: list[int], *outputs: Tensor) -> Tensor:
        ctx.live, ctx.began = live, began
        ctx.shapes = [(out.shape, out.dtype, out.device) for out in outputs]
        return outputs[0].new_empty(())

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Any:
        made = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.shapes]
        ctx.began.append(ctx.live.mark())
        return None, None, *made
