"""Says how a training uses the memory of a device, and what to do if it was too much after all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..disk.text import amount, counted, duration
from .rehearsal import Rehearsed

MARGIN, WORKSPACE, LEAST_SHARE = 0.05, 256 * 2**20, 0.02
"""What the plan leaves for what it cannot count, gaps in the allocator and the workspaces of the device's libraries: a
share of what a step needs, and so many bytes or, of a small device, a share of what there is."""
GB = 1e9

DRIVER, BESIDE = 600 * 2**20, 8 * 2**30 // 10
"""Of a card that is not at hand: what its driver and the desktop take, and what ComfyUI leaves free beside weights."""
LEAST_SAVED = 0.01
"""The share of a step's operations that is worth a word."""
WEIGHTS_LEAVE_IN = 4
"""In how many parts weights leave the device when memory runs out again and again."""

Size = tuple[int, ...]
"""The shape of a picture's latents, (C, H, W)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Says what memory a device has for a training, in bytes."""

    available: int
    """What weights and training can take together if everything else leaves the device."""
    weights: int
    """What the model's weights take on the device."""
    beside: int = 0
    """What the program leaves free beside the weights in any case."""
    streams: bool = False
    """Whether weights for which there is no room can be fetched for each use."""
    largest: int = 0
    """What is needed to fetch the largest weights."""

    def on_card(self, size: float) -> Memory:
        """Returns the memory that the same model would have on a card with so many gigabytes (of 2³⁰ bytes, as cards
        are sold)."""
        return replace(self, available=max(0, int(size * 2**30) - DRIVER), streams=True, beside=BESIDE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixed:
    """Holds what a training needs whatever the pictures, in bytes."""

    adapter: int
    gradients: int
    optimizer: int
    """The optimizer's state and the weights' average."""
    update: int
    """What an update needs for a moment beside all that."""

    @property
    def lasting(self) -> int:
        """Returns what is there all the time."""
        return self.adapter + self.optimizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """One way of running a batch. The next one down needs less memory and takes longer."""

    images: int
    """How many images of a batch run together."""
    streamed: bool = False
    """Whether a part of the weights is fetched for each use."""
    holds: bool = False
    """Whether what is fetched is held until a block's gradients are there."""
    in_ram: bool = False
    """Whether the blocks' inputs are kept in the computer's memory."""


Costs = Callable[[Size, Rung], Rehearsed]
"""Returns what a batch of pictures of one size costs on a rung. It takes seconds, and no memory of the device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Says how the batches of each size are run."""

    memory: Memory
    fixed: Fixed
    costs: Costs = field(repr=False, compare=False)
    rungs: tuple[Rung, ...]
    """The rung that is taken, and those below it."""
    kept: Mapping[Size, frozenset[int]] = field(default_factory=dict)
    """The blocks that keep everything, by the pictures' size."""
    peaks: Mapping[Size, int] = field(default_factory=dict)
    """What activations and gradients need at most, in bytes, by the pictures' size."""
    flop: Mapping[Size, float] = field(default_factory=dict)
    """The operations for one image, by its size, without those of preserving a prompt."""
    rate: float | None = None
    """The most operations a second that the device does; None if that is not known."""
    blocks: int = 0
    """How many blocks the model has."""
    batch_size: int = 1
    """How many images a batch has."""
    batches: int = 1
    """How many batches a step has."""
    further: bool = False
    """Whether a step has more than one batch, or a batch several parts."""
    reserve: int = 0
    """What must be free besides, in bytes, because memory ran out without it: room that weights have left."""
    advice: str = ""
    """What would make a step faster, in a sentence, if anything is known."""

    @property
    def rung(self) -> Rung:
        """Returns the rung that is taken."""
        return self.rungs[0]

    @property
    def activations(self) -> int:
        """Returns what activations and gradients need at most, in bytes."""
        return max(self.peaks.values(), default=0)

    @property
    def work(self) -> int:
        """Returns what the training needs at most beside the weights, in bytes."""
        step = max(self.activations, self.fixed.gradients + self.fixed.update)
        return self.fixed.lasting + step + (self.memory.largest if self.rung.streamed else 0)

    @property
    def weights(self) -> int:
        """Returns what the weights take on the device, as many of them as are there all the time, in bytes."""
        memory = self.memory
        return min(memory.weights, max(0, memory.available - self.room)) if self.rung.streamed else memory.weights

    @property
    def room(self) -> int:
        """Returns how many bytes must be free beside the weights."""
        return with_margin(self.work, self.memory) + self.reserve

    @property
    def least_seconds(self) -> float | None:
        """Returns how long a step of the largest pictures takes at least, however good the program; None if the rate of
        the device is not known."""
        if not self.rate:
            return None
        return self.batches * self.batch_size * max(self.flop.values()) / self.rate

    def lower(self) -> Plan | None:
        """Returns the plan to go on with when this one needed more than there was; None if there is no other."""
        if any(self.kept.values()):
            return self.keeping({size: frozenset(sorted(kept)[(len(kept) + 1) // 2:])
                                  for size, kept in self.kept.items()})
        if self.rung.streamed and self.reserve < self.memory.weights:
            return replace(self, reserve=self.reserve + max(1, self.memory.weights // WEIGHTS_LEAVE_IN))
        if len(self.rungs) == 1:
            return None
        split = self.further or self.rungs[1].images < self.batch_size
        return replace(self, rungs=self.rungs[1:], further=split).keeping(dict.fromkeys(self.kept, frozenset()))

    def keeping(self, kept: Mapping[Size, frozenset[int]]) -> Plan:
        """Returns the plan with what it costs when these blocks are kept."""
        rung, peaks, flop = self.rung, dict(self.peaks), dict(self.flop)
        for size, blocks in kept.items():
            cost = self.costs(size, rung)
            peaks[size] = cost.peak(blocks, further=self.further, in_ram=rung.in_ram, holds=rung.holds)
            flop[size] = cost.flop(blocks) / rung.images
        return replace(self, kept={**self.kept, **kept}, peaks=peaks, flop=flop, advice="")

    def sentence(self) -> str:
        """Returns the plan as a person reads it."""
        memory, rung, fixed = self.memory, self.rung, self.fixed
        how = [*self._how()]
        return (f"{amount(self.weights + self.work)} of {amount(memory.available)}: weights {amount(self.weights)}"
                f"{f' of {amount(memory.weights)}' if rung.streamed else ''}, LoRA and optimizer "
                f"{amount(fixed.lasting)}, a step {amount(self.work - fixed.lasting)}{'; ' if how else ''}"
                f"{', '.join(how)}.")

    def _how(self) -> Iterator[str]:
        rung = self.rung
        if self.blocks:
            fewest = min((len(kept) for kept in self.kept.values()), default=0)
            yield (f"keeping {fewest} of {self.blocks} blocks" if fewest else "every block is computed twice")
        if rung.images < self.batch_size:
            yield f"{counted(rung.images, 'picture')} of {self.batch_size} at a time"
        if rung.in_ram:
            yield "their inputs are kept in the computer's memory"
        if rung.streamed:
            yield "the other weights are fetched for each step, which is slower"
        if self.least_seconds:
            yield f"at least {duration(self.least_seconds)} a step"

    def settled(self) -> Plan:
        """Returns the plan for people to read. It cannot become another, and so does not hold the model."""
        return replace(self, costs=_settled)

    def with_advice(self) -> Plan:
        """Returns the plan with its `advice`."""
        return replace(self, advice=self._faster())

    def _faster(self) -> str:
        if self.rung.streamed or self.rung.in_ram:
            return "A smaller model file, such as one in fp8 or from Quantize Model for Training, would make it faster."
        fastest = self.keeping(dict.fromkeys(self.kept, frozenset(range(self.blocks))))
        saved = 1 - sum(fastest.flop.values()) / sum(self.flop.values())
        if saved < LEAST_SAVED:
            return ""
        missing = max(fastest.room, self.memory.beside) + self.memory.weights - self.memory.available
        how = f"With {amount(missing)} more" if missing > 0 else "With gradient_checkpointing auto"
        return f"{how} no block would be computed twice, which saves {saved:.0%} of the operations."

    def as_dict(self) -> dict[str, Any]:
        """Returns the plan as plain values, for JSON."""
        return {"sentence": self.sentence(), "advice": self.advice, "available": self.memory.available,
                "weights": self.weights, "adapter": self.fixed.adapter, "optimizer": self.fixed.optimizer,
                "needed": self.work, "step": self.work - self.fixed.lasting, "least_seconds": self.least_seconds,
                "blocks": self.blocks, "images_at_once": self.rung.images, "streamed": self.rung.streamed,
                "inputs_in_ram": self.rung.in_ram,
                "kept": {"×".join(map(str, size[-2:])): len(kept) for size, kept in self.kept.items()}}


def _settled(size: Size, rung: Rung) -> Rehearsed:
    raise RuntimeError("The training is over, and its plan is settled.")


def with_margin(needed: int, memory: Memory) -> int:
    """Returns how much must be free for so many bytes to be taken."""
    return int(needed * (1 + MARGIN) + min(WORKSPACE, LEAST_SHARE * memory.available))
