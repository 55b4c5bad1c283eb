"""Values for certain transformer blocks, as people write them: "kind 0-9: 8, other: 32, other 7: 64"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_ENTRY = re.compile(r"([a-z_]+)(?:\s+(\d+)(?:\s*-\s*(\d+))?)?\s*:\s*(\d+(?:\.\d+)?)")
FORMAT = "Write kinds of blocks with numbers, like 'kind 0-9: 8, kind: 32'"


@dataclass(frozen=True, slots=True)
class BlockValues:
    """A number for some blocks. Where two entries name a block, the later one counts."""

    entries: tuple[tuple[str, int, float, float], ...] = ()
    """Kind, first and last block, number."""
    problems: tuple[str, ...] = ()

    @property
    def numbers(self) -> list[float]:
        """All numbers that are given."""
        return [number for *_, number in self.entries]

    @property
    def kinds(self) -> set[str]:
        """All kinds of blocks that are named. Whether a model has them, its family knows."""
        return {kind for kind, *_ in self.entries}

    def of(self, block: tuple[str, int] | None, default: float) -> float:
        """The number for a block by its kind and its place, or the default; so for what lies in no block (None)."""
        found = default
        for kind, first, last, number in self.entries:
            if block and block[0] == kind and first <= block[1] <= last:
                found = number
        return found


@lru_cache(maxsize=64)
def parse_blocks(text: str) -> BlockValues:
    """Reads such a text; what cannot be read is in `problems`."""
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
    """Why a text is no regular expression; empty if it is one."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as err:
        return str(err)
    return ""
