"""Defines an engine: something that looks at one picture after another and says what it sees."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

Describe = Callable[[Tensor, int], str]
"""Takes a picture (h, w, 3) in 0…1 on the CPU and a seed, and returns what the picture shows, in one line. The line is
empty if nothing can be said."""


class Engine(Protocol):
    """Describes pictures. It is loaded when it is opened and unloaded when it is closed, and draws nothing from the
    global random numbers."""

    @property
    def name(self) -> str:
        """Returns the engine's name, for a person to read."""
        ...

    @property
    def settings(self) -> tuple[str | float, ...]:
        """Returns everything that the engine's words depend on besides the picture and the seed."""
        ...

    @property
    def max_side(self) -> int:
        """Returns the most pixels that the longer side of a picture may have. Larger pictures are scaled down to it."""
        ...

    def opened(self) -> AbstractContextManager[Describe]:
        """Loads the engine and yields the function that describes pictures. Raises ValueError or RuntimeError, before
        any picture, if it cannot work."""
        ...
