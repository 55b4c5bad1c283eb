"""Whether weights that are fetched for each use keep a graphics card waiting: the schedule of a step, simulated.

    python dev.py bench streaming

The real view of FLUX.1-dev takes a step on tensors without values, and it is noted when each weight is asked for and
given back, and how many operations lie in between. A clock then runs through these notes. A product takes its
operations ÷ 150 TFLOP/s; a weight its bytes ÷ 22 GB/s on the one line to the computer's memory, beside what the card
computes. As ComfyUI has it, weights come on two streams that take turns: a weight is asked for when the program gets
there, its stream waits until the buffer is free again that the weight before the last was in, and the card waits for
the weight before it goes on. What is fetched aside (trainer/model/transfer.py) has a clock of its own.

No step can be shorter than all its products, or all its fetches. But a block's weights can only come while the block
before it is computed, and ComfyUI keeps the largest layers on the card, those of FLUX's single blocks: of the double
blocks more is fetched than meanwhile computed, of the others less. So the table has two ratios: to the longer of the
two sums, and to the sum of what takes longer, block by block.

What is not simulated: kernels that are no products, starting kernels, casting and copying on the card (at some 1 TB/s,
a twentieth of the time of the fetch), memory that is not pinned. Which weights stay on the card is chosen as ComfyUI
loads a model partially: the largest layers first."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any, NamedTuple

import memory
from memory import GIB, Point

LINE, RATE, STREAMS = 22e9, 150e12, 2
"""Bytes a second to the card, operations a second on it, and ComfyUI's streams."""
CARDS = (8, 12, 16)


class Note(NamedTuple):
    """Something that the program asked of the card, after so many operations."""

    flop: int
    what: str
    loan: int = 0
    bytes: int = 0


class Card:
    """A card's clocks: of its ordinary work, and of what is done aside."""

    def __init__(self) -> None:
        self.clocks, self.at = [0.0, 0.0], 0
        self.line, self.ready, self.turn, self.loans = 0.0, [0.0] * STREAMS, 0, dict[int, int]()

    @property
    def now(self) -> float:
        """Where the work that is asked for is now."""
        return self.clocks[self.at]

    def wait(self, until: float) -> None:
        """Lets that work wait."""
        self.clocks[self.at] = max(self.now, until)

    def compute(self, flop: float) -> None:
        """Multiplies."""
        self.clocks[0] += flop / RATE

    def fetch(self, note: Note) -> None:
        """Lets the stream whose turn it is bring a weight, and waits for it."""
        self.ready[self.turn] = max(self.ready[self.turn], self.now)
        self.turn = (self.turn + 1) % STREAMS
        self.line = self.ready[self.turn] = max(self.line, self.ready[self.turn]) + note.bytes / LINE
        self.wait(self.line)
        self.loans[note.loan] = self.turn

    def give_back(self, note: Note) -> None:
        """Frees the buffer of a weight once what uses it is done."""
        turn = self.loans.pop(note.loan)
        self.ready[turn] = max(self.ready[turn], self.now)

    def aside(self, note: Note) -> None:
        """Goes on aside, once the ordinary work has come so far."""
        self.at = 1
        self.wait(self.clocks[0])

    def back(self, note: Note) -> None:
        """Goes on with the ordinary work."""
        self.at = 0

    def join(self, note: Note) -> None:
        """Waits for what is done aside."""
        self.wait(self.clocks[1])


def resident(live: Any, room: int) -> set[int]:
    """The layers for which there is room on the card."""
    layers = [m for m in live.modules() if any(p is not None for p in m._parameters.values())]
    found = set()
    for layer in sorted(layers, key=_size, reverse=True):
        if _size(layer) <= room:
            room -= _size(layer)
            found.add(id(layer))
    return found


def _size(layer: Any) -> int:
    return sum(p.nbytes for p in layer._parameters.values() if p is not None)


def notes(host: Any, point: Point, there: set[int], holds: bool) -> tuple[list[Note], int]:
    """What a step asks for, and its operations."""
    import torch
    from livelora.trainer.lora.inject import inject
    from livelora.trainer.model.checkpointing import Blocks
    from livelora.trainer.model.counting import Live, WithoutValues, drop_values
    from livelora.trainer.model.lending import Weight
    from livelora.trainer.model.transfer import Aside
    from livelora.trainer.model.view import build_view, copied_once
    from livelora.trainer.training.targets import layout

    found: list[Note] = []
    numbers = itertools.count()

    def note(*what: Any) -> None:
        found.append(Note(counting.flop, *what))

    def fetch(layer: Any, like: Any) -> Weight:
        if layer.weight is None:
            return Weight(None, None, _nothing)
        weight = like.new_empty(layer.weight.shape)
        bias = None if getattr(layer, "bias", None) is None else like.new_empty(layer.bias.shape)
        if id(layer) in there:
            return Weight(weight, bias, _nothing)
        number = next(numbers)
        note("fetch", number, _size(layer))
        return Weight(weight, bias, lambda: note("give_back", number), lasting=False)

    class Noted(Aside):
        @contextlib.contextmanager
        def working(self):
            note("aside")
            yield
            note("back")

        def join(self):
            note("join")

    config = memory.recipe(point)
    view = build_view(host._live, fetch, torch.zeros(1, device="meta"))
    inject(view, config, layout(view, config, host.family))
    blocks = Blocks(host.family.blocks(view), aside=Noted(host.device))
    blocks.holds = holds
    with WithoutValues(allow_non_fake_inputs=True), Live([]) as counting:
        drop_values(view, host.device)
        with copied_once(view), blocks.nothing_held_after():
            memory._gradients(host, view, point)
    return found, counting.flop


def _nothing() -> None:
    return None


def seconds(found: list[Note], flop: int) -> float:
    """The step on the simulated card."""
    card, done = Card(), 0
    for note in found:
        card.compute(note.flop - done)
        done = note.flop
        getattr(card, note.what)(note)
    card.compute(flop - done)
    return card.now


def best(found: list[Note], flop: int) -> float:
    """The step, if nothing were lost between fetching the weights of a block and computing the one before it."""
    ends = [number for number, note in enumerate(found) if note.what == "join"]
    total = 0.0
    for begin, end in zip([0, *ends], [*ends, len(found)], strict=True):
        products = (found[end].flop if end < len(found) else flop) - found[begin].flop
        total += max(products / RATE, sum(note.bytes for note in found[begin:end]) / LINE)
    return total


def main() -> None:
    """Prints a table."""
    memory.start()
    from livelora.trainer.model.fitting import DoesNotFit
    from livelora.trainer.training.planning import plan_for

    print("| weights | pixels | card | weights on the card | products s | fetches s | step s | ÷ the longer | ÷ block "
          "by block |")
    print("| --- " * 9 + "|")
    for weights, pixels, size in itertools.product(("bf16", "fp8"), (512, 1024), CARDS):
        host = memory.make_host(weights)
        point = Point(weights, pixels, 16, 1, 0, "AdamW8bit")
        try:
            plan = plan_for(host, memory.recipe(point), {(16, pixels // 8, pixels // 8)}, memory.a_text(),
                            memory=host.memory().on_card(size))
        except DoesNotFit:
            print(f"| {weights} | {pixels}² | {size} GB | does not fit | | | | | |")
            continue
        if not plan.rung.streamed:
            print(f"| {weights} | {pixels}² | {size} GB | all | | | | | |")
            continue
        found, flop = notes(host, point, resident(host._live, plan.weights), plan.rung.holds)
        products, fetches = flop / RATE, sum(note.bytes for note in found) / LINE
        took = seconds(found, flop)
        print(f"| {weights} | {pixels}² | {size} GB | {plan.weights / GIB:.1f} of {plan.memory.weights / GIB:.1f} GiB "
              f"| {products:.2f} | {fetches:.2f} | {took:.2f} | {took / max(products, fetches):.3f} "
              f"| {took / best(found, flop):.3f} |", flush=True)


if __name__ == "__main__":
    main()
