"""Reads preview prompts with settings of their own, one per line, as sd-scripts and ai-toolkit read them:
`a cat on a roof --w 512 --h 768 --d 42 --n blurry, ugly`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace

from ..disk.text import check_text
from ..model.host import SampleSettings
from ..training.task import Sample

OPTION = re.compile(r"(?<!\S)--([A-Za-z]\S*)")
"""The start of an option. Dashes inside a word, and dashes that stand alone, belong to the prompt."""


@dataclass(frozen=True, slots=True)
class Number:
    """Says what may follow an option: a number from `low` to `high`, and if there is a `grid`, a multiple of it."""

    setting: str
    low: float
    high: float
    grid: int = 0

    def read(self, value: str) -> float | None:
        """Returns the number, or None if the option does not allow it."""
        try:
            number = int(value) if self.grid else float(value)
        except ValueError:
            return None
        fits = self.low <= number <= self.high and not (self.grid and number % self.grid)
        return number if fits else None

    def __str__(self) -> str:
        kind = "a number" if not self.grid else "a whole number" if self.grid == 1 else f"a multiple of {self.grid}"
        return f"{kind} from {self.low} to {self.high}"


NUMBERS = {
    "w": Number("width", 64, 4096, 16),
    "h": Number("height", 64, 4096, 16),
    "d": Number("seed", 0, 0xFFFFFFFFFFFFFFFF, 1),
    "s": Number("steps", 1, 200, 1),
    "l": Number("cfg", 0, 30),
    "g": Number("guidance", 0, 30),
    "m": Number("strength", 0, 2),
}
"""The options that take a number. LoRA Sample Preview's inputs have the same limits."""
NEGATIVE = "n"
MOST_PROBLEMS = 20
"""The most problems that a message names."""
MOST_LETTERS = 80
"""The most letters of an option that a message shows."""


def number(setting: str) -> Number:
    """Returns what a setting may be."""
    return next(known for known in NUMBERS.values() if known.setting == setting)


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    prompt: str
    options: list[tuple[str, str]]

    def problems(self) -> list[str]:
        found = [] if self.prompt else ["has no prompt. Write it in front of the options."]
        names = Counter(name for name, _ in self.options)
        found += [f"--{name[:MOST_LETTERS]} is there {times} times. Keep one." for name, times in names.items()
                  if times > 1]
        found += [f"--{name} {value}"[:MOST_LETTERS].rstrip() + f": {problem}" for name, value in self.options
                  if (problem := _problem(name, value))]
        return [f"line {self.number}: {problem}" for problem in found]

    def sample(self, negative: str, defaults: SampleSettings) -> Sample:
        given = dict(self.options)
        negative = given.pop(NEGATIVE, negative)
        numbers = {NUMBERS[name].setting: NUMBERS[name].read(value) for name, value in given.items()}
        return Sample(self.prompt, negative, replace(defaults, **numbers))


def parse_all(text: str, negative: str, defaults: SampleSettings) -> tuple[Sample, ...]:
    """Returns a sample for each line. What a line does not set comes from `negative` and `defaults`. Empty lines and
    those that start with # are passed over.

    Options stand behind the prompt in any order, in small or capital letters: the keys of NUMBERS, and --n for the
    negative prompt, which runs to the next option and may be empty. Raises ValueError that names every problem of
    every line."""
    check_text("negative", negative)
    return tuple(line.sample(negative, defaults) for line in _lines(text))


def check(text: str) -> None:
    """Raises the ValueError that `parse_all` would raise."""
    _lines(text)


def _lines(text: str) -> list[_Line]:
    check_text("prompts", text)
    numbered = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [_split(number, line) for number, line in numbered if line and not line.startswith("#")]
    if not lines:
        raise ValueError("LoRA Sample Preview has no prompts. Write one a line, or remove the node.")
    if problems := [problem for line in lines for problem in line.problems()]:
        named = problems[:MOST_PROBLEMS]
        more = [f"and {len(problems) - len(named)} more."] if problems[len(named):] else []
        raise ValueError("\n- ".join(["LoRA Sample Preview cannot draw these prompts:", *named, *more]))
    return lines


def _split(number: int, line: str) -> _Line:
    prompt, *rest = OPTION.split(line)
    options = zip(rest[::2], rest[1::2], strict=True)
    return _Line(number, prompt.strip(), [(name.lower(), value.strip()) for name, value in options])


def _problem(name: str, value: str) -> str:
    if name == NEGATIVE:
        return ""
    if name not in NUMBERS:
        known = ", ".join(f"--{letter}" for letter in NUMBERS)
        return (f"there is no such option. Use {known} or --{NEGATIVE}, each with a space behind it; if it belongs to "
                f"the prompt, write '-- {name[:MOST_LETTERS]}'.")
    number = NUMBERS[name]
    return "" if number.read(value) is not None else f"{number.setting} must be {number}."
