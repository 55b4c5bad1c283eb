"""What is known of a recipe's settings beside their names and values: said once, for the rules, the nodes and the docs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field
from typing import Any, get_args


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """What is known of a setting."""

    says: str
    """What it does, and when to change it. {example} stands for a value that suits the model's family."""
    low: float = -math.inf
    high: float = math.inf
    """The smallest and the largest number."""
    step: float = 1
    """How far the arrows of its input go."""
    choices: tuple[str, ...] = ()
    """The texts that are allowed. Empty: any."""
    only_with: tuple[str, tuple[str, ...]] = ("", ())
    """Another setting, and the values of it with which this one means something. Empty: it always does."""

    def problem(self, name: str, value: Any) -> str:
        """What is wrong with a value, in a sentence; empty if nothing is."""
        if self.choices and value not in self.choices:
            return f"{name} must be one of {', '.join(self.choices)}, got {value!r}."
        if isinstance(value, (int, float)) and not self.low <= value <= self.high:
            return f"{name} must be {self.range}, got {value}."
        return ""

    @property
    def range(self) -> str:
        """The numbers that are allowed, in words."""
        return f"from {self.low:g} to {_plain(self.high)}"


def _plain(number: float) -> str:
    return f"{number:g}" if abs(number) < 1e6 else str(int(number))


def setting(default: Any = MISSING, low: float = -math.inf, high: float = math.inf, step: float = 1, *, says: str,
            choices: Sequence[str] | Any = (), only_with: tuple[str, tuple[str, ...]] = ("", ())) -> Any:
    """A field of a recipe. `choices`: texts, or a Literal of them."""
    about = About(says=says, low=low, high=high, step=step, only_with=only_with,
                  choices=tuple(choices) if isinstance(choices, (list, tuple)) else get_args(choices))
    return field(default=default, metadata={"about": about})


def about(entry: Field[Any]) -> About:
    """What is known of a field that `setting` made."""
    return entry.metadata["about"]
