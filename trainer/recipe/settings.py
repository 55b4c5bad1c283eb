"""Describes a recipe's settings besides their names and values, once for the rules, the nodes and the docs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal, get_args

from ..disk.text import text_problem

Group = Literal["", "Adapter", "Optimizer", "Noise", "Loss", "Captions", "Memory", "Validation", "Saving",
                "Sharing"]


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """Describes a setting."""

    says: str
    """What the setting does, and when to change it. {example} stands for a value that suits the model's family."""
    low: float = -math.inf
    high: float = math.inf
    """The smallest and the largest number that are allowed."""
    step: float = 1
    """How much one click on an arrow of its input changes the number."""
    choices: tuple[str, ...] = ()
    """The texts that are allowed. Empty: any text is allowed."""
    group: Group = ""
    """Under which title LoRA Train shows it. Empty: it has a place of its own on the node."""
    only_with: tuple[str, tuple[str, ...]] = ("", ())
    """Another setting, and its values with which this one means something; no values stand for all but its default.
    Empty: this one always means something."""
    later: bool = False
    """Whether it came after 0.1.0. At its default it then makes no other training, so that older jobs go on."""

    @property
    def told(self) -> str:
        """Returns what a person reads about the setting: with which choice it means something, and what it does."""
        other, values = self.only_with
        if not other:
            return self.says
        return f"Only with {' '.join(filter(None, (other, _or(values))))}. {self.says}"

    def problem(self, name: str, value: Any) -> str:
        """Returns what is wrong with a value, in a sentence; empty if nothing is."""
        if self.choices and value not in self.choices:
            return f"{name} must be one of {', '.join(self.choices)}, got {value!r}."
        if isinstance(value, (int, float)) and not self.low <= value <= self.high:
            return f"{name} must be {self.range}, got {value}."
        if isinstance(value, str) and (problem := text_problem(name, value)):
            return problem
        return ""

    @property
    def range(self) -> str:
        """Returns the numbers that are allowed, in words."""
        return f"from {self.low:g} to {_plain(self.high)}"


def _or(texts: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


def _plain(number: float) -> str:
    return f"{number:g}" if abs(number) < 1e6 else str(int(number))


def setting(default: Any = MISSING, low: float = -math.inf, high: float = math.inf, step: float = 1, *, says: str,
            choices: Sequence[str] | Any = (), group: Group = "",
            only_with: tuple[str, tuple[str, ...]] = ("", ()), later: bool = False) -> Any:
    """Makes a field of a recipe. `choices` are texts, or a Literal of them."""
    about = About(says=says, low=low, high=high, step=step, group=group, only_with=only_with, later=later,
                  choices=tuple(choices) if isinstance(choices, (list, tuple)) else get_args(choices))
    return field(default=default, metadata={"about": about})


def field_of(recipe: Any, name: str) -> Field[Any]:
    """Returns a field of a recipe, or of its class."""
    return next(entry for entry in fields(recipe) if entry.name == name)


def about(entry: Field[Any]) -> About:
    """Returns the description of a field that `setting` made."""
    return entry.metadata["about"]
