"""The states of a job, and what can be done with it in each."""

from __future__ import annotations

from typing import Literal, get_args

State = Literal["queued", "preparing", "training", "paused", "finishing", "done", "stopped", "failed"]
Wish = Literal["pause", "stop", "discard", "extend"]
"""What shall become of a training after the step under way."""

ACTIVE: tuple[State, ...] = ("queued", "preparing", "training", "finishing")
ACTIONS: dict[str, tuple[State, ...]] = {
    "pause": ("queued", "preparing", "training"),
    "resume": ("paused", "stopped", "failed"),
    "stop": ("queued", "preparing", "training", "paused"),
    "discard": ("queued", "preparing", "training", "paused"),
    "save": ("training",),
    "sample": ("training",),
    "extend": ("queued", "preparing", "training", "paused", "stopped", "done"),
    "move": ("queued",),
    "delete": ("paused", "stopped", "failed", "done"),
    "duplicate": get_args(State),
    "share": get_args(State),
}
"""The states in which each action is possible."""
DURING_TRAINING = ("pause", "stop", "discard", "save", "sample", "extend")
REQUEUED = ("resume", "extend", "duplicate")
"""These may need the job's workflow to be queued again."""
COMING = "soon"
"""What `Job.awaited` says until the prompt that brings a job's model back has an id."""


class Refused(Exception):
    """An action does not go with the state of a job. The text says why."""


def any_of(states: tuple[State, ...]) -> str:
    """States in words: "queued, preparing or training"."""
    return " or ".join(filter(None, (", ".join(states[:-1]), states[-1])))
