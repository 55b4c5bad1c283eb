"""Who has the GPU. One lease for the whole process: prompts hold it from start to end, training for one step at a
time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Lease:
    """A lock that lets prompts go first and knows whether anybody else had it in between.

    A prompt waits for at most one step; training waits until no prompt wants it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held = False
        self._prompts_waiting = 0
        self._prompt_turns = 0
        self._seen_turns = -1

    def take_for_prompt(self) -> None:
        """Blocks until the step under way is over."""
        with self._changed:
            self._prompts_waiting += 1
            self._changed.wait_for(lambda: not self._held)
            self._prompts_waiting -= 1
            self._held = True
            self._prompt_turns += 1

    def give_back(self) -> None:
        """A prompt is over, or lends its lease."""
        with self._changed:
            self._held = False
            self._changed.notify_all()

    @property
    def prompt_is_waiting(self) -> bool:
        """Whether a prompt waits for the step under way."""
        return self._prompts_waiting > 0

    @contextlib.contextmanager
    def step(self) -> Iterator[bool]:
        """Holds the lease for one training step. Gives True if a prompt had it since the last step, so that the model
        may have been moved, patched or unloaded."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held and not self._prompts_waiting)
            self._held = True
            disturbed = self._seen_turns != self._prompt_turns
            self._seen_turns = self._prompt_turns
        try:
            yield disturbed
        finally:
            self.give_back()

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """For a prompt that waits for a job: while inside, the job may train."""
        self.give_back()
        try:
            yield
        finally:
            self.take_for_prompt()
