"""Keeps a model where training needs it, while other people load and unload what they like."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from .host import Host

MOST_DISTURBED = 10
"""How often in a row the model may be taken away while something is computed."""

Result = TypeVar("Result")


def _alone() -> int:
    return 0


class Resident:
    """The one place that knows whether the model is still as it was left, and that brings it back.

    Somebody who takes a turn may leave the model patched, moved or without room beside it: `turns` counts such turns.
    "Unload models" and an out-of-memory error elsewhere take no turn: the host knows of those."""

    def __init__(self, host: Host, room: Callable[[], int], turns: Callable[[], int] = _alone) -> None:
        """`room` returns the number of bytes that must be free beside the model."""
        self._host, self._room, self._turns = host, room, turns
        self._seen: int | None = None

    def bring(self) -> None:
        """Loads the model if somebody may have changed or moved it."""
        turns = self._turns()
        if turns != self._seen or not self._host.undisturbed():
            self._host.load(self._room())
            self._seen = turns

    def forget(self) -> None:
        """Lets the model be loaded anew next time, because the room that must be free beside it has changed."""
        self._seen = None

    def run(self, work: Callable[[], Result]) -> Result:
        """Returns the result of `work` on a model that stayed as it was loaded. If somebody took the model away in
        between, it is loaded again and the work is done again. Raises RuntimeError if that happens MOST_DISTURBED times
        in a row."""
        for _ in range(MOST_DISTURBED):
            self.bring()
            try:
                result = work()
            except Exception:
                if self._host.undisturbed():
                    raise
            else:
                if self._host.undisturbed():
                    return result
        raise RuntimeError(f"The model was unloaded during {MOST_DISTURBED} steps in a row. Something keeps asking "
                           "ComfyUI to free its memory; stop that, and resume the job.")
