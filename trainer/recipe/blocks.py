"""Values for single transformer blocks, as people write them: "double 0-9: 8, single: 32, single 7: 64"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_ENTRY = re.compile(r"(double|single)(?:\s+(\d+)(?:\s*-\s*(\d+))?)?\s*:\s*(\d+(?:\.\d+)?)")
_BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.")
FORMAT = "Write for example 'double 0-9: 8, single: 32'"


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

    def of(self, module: str, default: float) -> float:
        """The number for a module by its name (`double_blocks.3.img_mlp.0`), or the default."""
        if not (match := _BLOCK.match(module)):
            return default
        kind, index, found = match[1], int(match[2]), default
        for entry_kind, first, last, number in self.entries:
            if kind == entry_kind and first <= index <= last:
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
