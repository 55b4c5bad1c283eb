"""Reads values for certain transformer blocks, as people write them: "kind 0-9: 8, other: 32, other 7: 64"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_ENTRY = re.compile(r"([a-z_]+)(?:\s+(\d+)(?:\s*-\s*(\d+))?)?\s*:\s*(\d+(?:\.\d+)?)")
FORMAT = "Write kinds of blocks with numbers, like 'kind 0-9: 8, kind: 32'"


@dataclass(frozen=True, slots=True)
class BlockValues:
    """Gives a number for some blocks. If two entries name a block, the later one counts."""

    entries: tuple[tuple[str, int, float, float], ...] = ()
    """Each entry has a kind, the first and the last block, and the number."""
    problems: tuple[str, ...] = ()

    @property
    def numbers(self) -> list[float]:
        """Returns all numbers that the entries give."""
        return [number for *_, number in self.entries]

    @property
    def kinds(self) -> set[str]:
        """Returns all kinds of blocks that the entries name. The model's family knows whether the model has them."""
        return {kind for kind, *_ in self.entries}

    def of(self, block: tuple[str, int] | None, default: float) -> float:
        """Returns the number for a block (its kind and place), or the default if no entry names it. What lies in no
        block (None) has the default too."""
        found = default
        for kind, first, last, number in self.entries:
            if block and block[0] == kind and first <= block[1] <= last:
                found = number
        return found


@lru_cache(maxsize=64)
def parse_blocks(text: str) -> BlockValues:
    """Reads a text that gives blocks their values. `problems` lists what cannot be read."""
    entries, problems = [], []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if not (match := _ENTRY.fullmatch(part)):
            problems.append(f"'{part}' cannot be read. {FORMAT}.")
            continue
        kind, first, last, number = match.groups()
        low, high = int(first or 0), float(last or first or "inf")
        if high < low:
            problems.append(f"'{part}' ends before it begins. {FORMAT}.")
        entries.append((kind, low, high, float(number)))
    return BlockValues(tuple(entries), tuple(problems))


def problem_with_regex(pattern: str) -> str:
    """Returns why a text is not a regular expression; empty if it is one."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as err:
        return str(err)
    return ""
