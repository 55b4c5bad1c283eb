"""Lists the states of a job and what can be done with it in each."""

from __future__ import annotations

from typing import Literal, get_args

State = Literal["queued", "preparing", "training", "paused", "finishing", "done", "stopped", "failed"]
Wish = Literal["pause", "stop", "discard", "extend"]
"""What a person wants to happen to a training after the step under way."""

ACTIVE: tuple[State, ...] = ("queued", "preparing", "training", "finishing")
ACTIONS: dict[str, tuple[State, ...]] = {
    "pause": ("queued", "preparing", "training"),
    "resume": ("paused", "stopped", "failed"),
    "stop": ("queued", "preparing", "training", "paused"),
    "discard": ("queued", "preparing", "training", "paused"),
    "save": ("training",),
    "export": ("training", "paused", "stopped", "done"),
    "sample": ("training",),
    "extend": ("queued", "preparing", "training", "paused", "stopped", "done"),
    "move": ("queued",),
    "delete": ("paused", "stopped", "failed", "done"),
    "duplicate": get_args(State),
    "share": get_args(State),
}
"""The states in which each action is possible."""
DURING_TRAINING = ("pause", "stop", "discard", "save", "export", "sample", "extend")
REQUEUED = ("resume", "extend", "duplicate")
"""The actions that may need the job's workflow to be queued again."""
COMING = "soon"
"""The value of `Job.awaited` until the prompt that brings a job's model back has an id."""


class Refused(Exception):
    """Is raised when a job's state does not allow an action. The text says why."""


def any_of(states: tuple[State, ...]) -> str:
    """Returns states in words: "queued, preparing or training"."""
    return " or ".join(filter(None, (", ".join(states[:-1]), states[-1])))
