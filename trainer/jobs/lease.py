"""Decides who has the GPU. The whole process has one lease: prompts hold it from start to end, training holds it for
one step at a time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal

Sharing = Literal["prompts first", "fair share", "training first"]
"""The rules for who goes first when prompts and a training both want the GPU."""
LOOK = 0.05
"""Seconds between two looks at what gives no notice of a change: the program's queue of prompts and its stop button."""


def _never() -> bool:
    return False


class Withdrawn(Exception):
    """Is raised when whoever waited for the lease no longer wants it."""


class Lease:
    """A lock that decides by a rule who goes next.

    Under "prompts first" a prompt waits for at most one step, and training waits until no prompt runs or is queued.
    Under "fair share", while prompts keep coming, training gets after each prompt as much time as that prompt took.
    Under "training first" prompts wait until no job trains."""

    def __init__(self) -> None:
        self.prompts_queued: Callable[[], bool] = _never
        """Whether the program has prompts that run or wait to run."""
        self._changed = threading.Condition()
        self._held = False
        self._owner: int | None = None
        """The thread that holds the lease."""
        self._waiting = self._urgent = self._lent = 0
        """How many prompts wait; how many of them no rule holds back; how many lend the lease and wait for a job."""
        self._rule: Callable[[], Sharing] | None = None
        """Gives the rule of the job that trains; None while no job trains."""
        self._owed = self._since = 0.0
        """Seconds that training may take before the next prompt; the time when the present prompt took the lease."""
        self._prompt_turns = 0

    # For prompts

    def take_for_prompt(self, hurry: Callable[[], bool] = _never) -> None:
        """Takes the lease when it is a prompt's turn. Once `hurry` is true, it waits only for the step under way."""
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
        """Gives the lease back, because a prompt is over or lends it."""
        with self._changed:
            if self._rule:
                self._owed += time.monotonic() - self._since
            self._prompt_turns += 1
            self._free()

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Lends the lease of a prompt that waits for a job: while inside, jobs may train. The prompt then takes it back
        before anybody else."""
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
        """Holds the lease for somebody who changes outside a prompt what is loaded. They get it before anybody else,
        after the step under way. A thread that already has the lease goes on with it."""
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
        """Notes, while inside, that a job trains, so that prompts wait for it as its rule says."""
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
        """Returns a number that changes whenever a prompt takes the lease or gives it back. In between, the prompt may
        have moved, patched or unloaded the model."""
        return self._prompt_turns

    @property
    def prompt_is_waiting(self) -> bool:
        """Returns whether a prompt waits for the lease."""
        return self._waiting > 0

    def prompt_is_next(self) -> bool:
        """Returns whether a prompt waits that goes before the next step."""
        with self._changed:
            return self._waiting > 0 and (self._urgent > 0 or self._prompts_go_first())

    @property
    def idle(self) -> bool:
        """Returns whether nobody holds the lease, waits for it or trains."""
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
