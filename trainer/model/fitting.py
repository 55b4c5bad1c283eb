"""Chooses the fastest way of training that fits the memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ..disk.text import amount
from .memory import Costs, Fixed, Memory, Plan, Rung, Size
from .rehearsal import Rehearsed


class DoesNotFit(ValueError):
    """Is raised when no plan fits the memory."""


def rungs(batch_size: int, streams: bool) -> Iterator[Rung]:
    """Yields all ways of running a batch, from the fastest to the one that needs least memory."""
    counts = [*_halves(batch_size)]
    for count in counts:
        yield Rung(images=count)
    yield Rung(images=1, in_ram=True)
    if streams:
        for count in counts:
            yield Rung(images=count, streamed=True, holds=True)
        yield Rung(images=1, streamed=True, holds=True, in_ram=True)
        yield Rung(images=1, streamed=True, in_ram=True)


def _halves(count: int) -> Iterator[int]:
    while count > 1:
        yield count
        count = (count + 1) // 2
    yield 1


def plan(memory: Memory, fixed: Fixed, costs: Costs, sizes: Iterable[Size], batch_size: int, *,
         checkpointing: str, further: bool) -> Plan:
    """Returns the fastest plan that fits. `checkpointing` is "all" to compute every block again, "none" to compute
    none, and "auto" for as many as the memory asks for. `further`: whether a step has more than one batch.

    Raises DoesNotFit if there is none."""
    largest_first, ways = sorted(sizes, key=_area, reverse=True), [*rungs(batch_size, memory.streams)]
    if checkpointing == "none":
        ways = ways[:1]
    for index, rung in enumerate(ways):
        made = Plan(memory=memory, fixed=fixed, costs=costs, rungs=tuple(ways[index:]), batch_size=batch_size,
                    further=further or rung.images < batch_size)
        for size in largest_first:
            made = _with_size(made, size, checkpointing)
            if not _fits(made):
                break
        else:
            return made
    raise DoesNotFit(_too_large(made))


def _with_size(made: Plan, size: Size, checkpointing: str) -> Plan:
    """Returns the plan with pictures of one size more, and as many of their blocks kept as there is room for."""
    cost, rung = made.costs(size, made.rung), made.rung
    all_kept, made = worth_most_first(cost), replace(made, blocks=len(cost.blocks))

    def with_kept(count: int) -> Plan:
        return made.keeping({size: frozenset(all_kept[:count])})

    if checkpointing == "none":
        return with_kept(len(all_kept))
    if checkpointing == "all" or rung.streamed or rung.in_ram:
        return with_kept(0)
    few, many = 0, len(all_kept)
    while few < many:
        middle = (few + many + 1) // 2
        few, many = (middle, many) if _fits(with_kept(middle)) else (few, middle - 1)
    return with_kept(few)


def worth_most_first(cost: Rehearsed) -> list[int]:
    """Returns the blocks in the order in which it is best to keep them: those that save most operations for each byte,
    and of equal ones the last, because they are let go of first."""
    worth = [block.flop / max(1, block.kept_bytes) for block in cost.blocks]
    return sorted(range(len(worth)), key=lambda place: (-worth[place], -place))


def _fits(made: Plan) -> bool:
    memory = made.memory
    if made.rung.streamed:
        return made.room <= memory.available
    return max(made.room, memory.beside) + memory.weights <= memory.available


def _too_large(made: Plan) -> str:
    memory = made.memory
    least = made.room + (0 if made.rung.streamed else memory.weights)
    return f"This training needs {amount(least)} of memory, and there are {amount(memory.available)}."


def _area(size: Size) -> int:
    return size[-1] * size[-2]
