"""Who has the GPU. One lease for the whole process: prompts hold it from start to end, training for one step at a
time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal

Sharing = Literal["prompts first", "fair share", "training first"]
"""Who goes first when prompts and a training both want the GPU."""
LOOK = 0.05
"""Seconds between two looks at what does not call: the program's queue of prompts and its stop button."""


def _never() -> bool:
    return False


class Withdrawn(Exception):
    """Who waited for the lease does not want it any more."""


class Lease:
    """A lock with a rule for who goes next.

    Under "prompts first" a prompt waits for at most one step, and training until no prompt runs or is queued. Under
    "fair share" training, once prompts keep coming, gets as much time as each of them took before the next one. Under
    "training first" prompts wait until no job trains."""

    def __init__(self) -> None:
        self.prompts_queued: Callable[[], bool] = _never
        """Whether the program has prompts that run or wait to run."""
        self._changed = threading.Condition()
        self._held = False
        self._owner: int | None = None
        """The thread that has it."""
        self._waiting = self._urgent = self._lent = 0
        """Prompts that wait; those of them that no rule holds back; those that wait for a job."""
        self._rule: Callable[[], Sharing] | None = None
        """Of the job that trains; None while none does."""
        self._owed = self._since = 0.0
        """Seconds that training may take before the next prompt; when the present prompt took the lease."""
        self._prompt_turns = 0

    # For prompts

    def take_for_prompt(self, hurry: Callable[[], bool] = _never) -> None:
        """Blocks until it is a prompt's turn; once `hurry` is true, only for the step under way."""
        with self._changed:
            self._waiting += 1
            try:
                while not self._changed.wait_for(self._prompt_may, LOOK):
                    if hurry():
                        self._urgent += 1
                        self._changed.wait_for(lambda: not self._held)
                        self._urgent -= 1
                        break
            finally:
                self._waiting -= 1
            self._begin_prompt()

    def give_back(self) -> None:
        """A prompt is over, or lends its lease."""
        with self._changed:
            if self._rule:
                self._owed += time.monotonic() - self._since
            self._prompt_turns += 1
            self._free()

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """For a prompt that waits for a job: while inside, jobs may train. It takes the lease back before any other."""
        with self._changed:
            self._lent += 1
        self.give_back()
        try:
            yield
        finally:
            with self._changed:
                self._lent -= 1
                self._take_first()

    @contextlib.contextmanager
    def briefly(self) -> Iterator[None]:
        """For who changes what is loaded outside a prompt: held before any other, after the step under way. A thread
        that has the lease goes on with it."""
        if self._owner == threading.get_ident():
            yield
            return
        with self._changed:
            self._take_first()
        try:
            yield
        finally:
            self.give_back()

    # For training

    @contextlib.contextmanager
    def training(self, rule: Callable[[], Sharing]) -> Iterator[None]:
        """While inside a job trains, and prompts wait for it as its rule says."""
        with self._changed:
            self._rule, self._owed = rule, 0.0
        try:
            yield
        finally:
            with self._changed:
                self._rule = None
                self._changed.notify_all()

    @contextlib.contextmanager
    def step(self, unless: Callable[[], bool] = _never) -> Iterator[None]:
        """Holds the lease for one training step. Raises Withdrawn once `unless` is true while it has to wait."""
        with self._changed:
            while not self._changed.wait_for(self._training_may, LOOK):
                if unless():
                    raise Withdrawn
            self._held, self._owner, began = True, threading.get_ident(), time.monotonic()
        try:
            yield
        finally:
            with self._changed:
                self._owed = max(0.0, self._owed - (time.monotonic() - began))
                self._free()

    def prompt_turns(self) -> int:
        """Changes whenever a prompt takes the lease and whenever it gives it back. In between it may have moved,
        patched or unloaded the model."""
        return self._prompt_turns

    @property
    def prompt_is_waiting(self) -> bool:
        """Whether a prompt waits for the lease."""
        return self._waiting > 0

    def prompt_is_next(self) -> bool:
        """Whether a prompt waits that goes before the next step."""
        with self._changed:
            return self._waiting > 0 and (self._urgent > 0 or self._prompts_go_first())

    @property
    def idle(self) -> bool:
        """Whether nobody has it, waits for it or trains."""
        with self._changed:
            return not (self._held or self._waiting or self._lent or self._rule)

    # The rule

    def _prompts_go_first(self) -> bool:
        rule = self._rule() if self._rule else "prompts first"
        return rule == "prompts first" or (rule == "fair share" and not self._owed)

    def _prompt_may(self) -> bool:
        return not self._held and self._prompts_go_first()

    def _training_may(self) -> bool:
        if self._held or self._urgent:
            return False
        if self._lent:
            return True
        return not self._prompts_go_first() or not (self._waiting or self.prompts_queued())

    def _take_first(self) -> None:
        self._waiting += 1
        self._urgent += 1
        self._changed.wait_for(lambda: not self._held)
        self._urgent -= 1
        self._waiting -= 1
        self._begin_prompt()

    def _begin_prompt(self) -> None:
        self._held, self._owner, self._since = True, threading.get_ident(), time.monotonic()
        self._prompt_turns += 1

    def _free(self) -> None:
        self._held, self._owner = False, None
        self._changed.notify_all()
