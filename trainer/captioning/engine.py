"""What an engine is: something that looks at one picture after another and says what it sees."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

Describe = Callable[[Tensor, int], str]
"""A picture (h, w, 3) in 0…1 on the CPU and a seed → what is on it, in one line; empty if nothing can be said."""


class Engine(Protocol):
    """Is loaded when it is opened and unloaded when it is left, and draws nothing from the global random numbers."""

    @property
    def name(self) -> str:
        """What it is, for a person."""
        ...

    @property
    def settings(self) -> tuple[str | float, ...]:
        """What its words depend on beside the picture and the seed."""
        ...

    @property
    def max_side(self) -> int:
        """Larger pictures are scaled down to this many pixels on their longer side."""
        ...

    def opened(self) -> AbstractContextManager[Describe]:
        """Raises ValueError or RuntimeError, before any picture, if it cannot work."""
        ...
