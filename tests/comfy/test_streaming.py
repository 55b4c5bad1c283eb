"""Weights that are fetched for each use: how often, and when."""

from __future__ import annotations

import contextlib
import itertools

import memory
import pytest
import streaming
import torch
from livelora.trainer.lora.inject import inject
from livelora.trainer.model.checkpointing import Blocks
from livelora.trainer.model.lending import Weight
from livelora.trainer.model.transfer import Aside
from livelora.trainer.model.view import build_view, lenders
from livelora.trainer.training.targets import layout
from tiny_flux import CONFIG, gradients


class Noted(Aside):
    """Notes what is done when, as a device with two lines of work would."""

    def __init__(self, events: list) -> None:
        self.events = events

    @contextlib.contextmanager
    def working(self):
        self.events.append("aside")
        yield
        self.events.append("back")

    def join(self) -> None:
        self.events.append("join")


class Streamed:
    """A view whose weights are all fetched, into buffers that are overwritten when they are given back."""

    def __init__(self, host, *, ahead: bool, fails_at: int = -1) -> None:
        self.events, self.fails_at, self.places, self._count = [], fails_at, {}, itertools.count()
        self.view = build_view(host._live, self.fetch, torch.zeros(1))
        self.params = inject(self.view, CONFIG, layout(self.view, CONFIG, host.family))
        draw = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for param in self.params:
                param.copy_(torch.randn(param.shape, generator=draw) * 0.02)
        self.blocks = Blocks(host.family.blocks(self.view), aside=Noted(self.events) if ahead else None)
        for place, block in enumerate(host.family.blocks(host._live)):
            self.places |= {id(part): place for part in block.modules()}

    def fetch(self, live, like) -> Weight:
        if next(self._count) == self.fails_at:
            raise torch.OutOfMemoryError("refused by the test")
        if live.weight is None:
            return Weight(None, None, lambda: None)
        if id(live) in self.places:
            self.events.append((self.places[id(live)], id(live)))
        weight = live.weight.detach().to(like.dtype, copy=True)
        bias = None if getattr(live, "bias", None) is None else live.bias.detach().to(like.dtype, copy=True)
        return Weight(weight, bias, lambda: weight.fill_(torch.nan), lasting=False)

    def held(self) -> int:
        return sum(len(lender.kept) for block in self.blocks.all for lender in lenders(block.module))


@pytest.mark.parametrize("ahead", [True, False])
def test_each_weight_comes_twice_a_step_and_a_block_ahead(host, ahead):
    one = Streamed(host, ahead=ahead)
    one.blocks.holds = True
    with one.blocks.nothing_held_after():
        gradients(host, one.view, one.params)
    order = [event[0] for event in one.events if isinstance(event, tuple)]
    last, then = len(one.blocks.all) - 1, [place for place, _ in itertools.groupby(order)]
    assert last == 3 and then == ([1, 0, 2, 3, 2, 3, 1, 0] if ahead else [0, 1, 2, 3, 2, 1, 0])
    weights = [event for event in one.events if isinstance(event, tuple)]
    assert all(weights.count(weight) == 2 for weight in {*weights})
    if ahead:  # of each pass the first block's alone come when they are used
        aside = [one.events[:at].count("aside") > one.events[:at].count("back")
                 for at, event in enumerate(one.events) if isinstance(event, tuple)]
        assert {place for place, early in zip(order, aside, strict=True) if not early} == {0, last}
        assert one.events.count("join") == 2 * (last + 1) + 1


def test_fetching_ahead_changes_no_bit(host):
    found = []
    for holds, ahead in ((False, False), (True, False), (True, True)):
        one = Streamed(host, ahead=ahead)
        one.blocks.holds = holds
        with one.blocks.nothing_held_after():
            found.append(gradients(host, one.view, one.params))
    assert all(a.equal(b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    assert all(grad.isfinite().all() for grad in found[0])


@pytest.mark.parametrize("at", [7, 40, 60, 80])
def test_nothing_is_held_after_a_step_that_failed(host, at):
    one = Streamed(host, ahead=True, fails_at=at)
    one.blocks.holds = True
    with pytest.raises(torch.OutOfMemoryError), one.blocks.nothing_held_after():
        gradients(host, one.view, one.params)
    assert one.held() == 0
    with one.blocks.nothing_held_after():
        again = gradients(host, one.view, one.params)
    assert one.held() == 0 and all(grad.isfinite().all() for grad in again)


def test_a_full_size_step_loses_next_to_nothing_between_the_blocks():
    """On a card of 12 GB, simulated (bench/streaming.py)."""
    host, point = memory.make_host("bf16"), memory.Point("bf16", 1024, 16, 1, 0, "AdamW8bit")
    found, flop = streaming.notes(host, point, streaming.resident(host._live, 8 * 2**30), holds=True)
    assert streaming.seconds(found, flop) < 1.05 * streaming.best(found, flop)
