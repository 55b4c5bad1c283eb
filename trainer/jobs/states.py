"""What can be done with a job in which state, and why not in the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from .job import Job

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
COMING = "soon"
"""What `Job.awaited` says until the prompt that brings a job's model back has an id."""
DURING_TRAINING = ("pause", "stop", "discard", "save", "sample", "extend")
REQUEUED = ("resume", "extend", "duplicate")
"""These may need the job's workflow to be queued again."""


class Refused(Exception):
    """An action does not go with the state of a job. The text says why."""


def why_not(job: Job, action: str) -> str:
    """A sentence if the action is not possible now; else nothing."""
    if job.state not in ACTIONS[action]:
        return f"This job is {job.state}, so '{action}' is not possible. It is when a job is {_any(ACTIONS[action])}."
    if job.wish and action in DURING_TRAINING:
        return f"This job is about to {job.wish}, after the step under way. Ask again when it has."
    if action in job.asked:
        return f"'{action}' was asked for already, and comes after the step under way."
    if action == "sample" and not (job.task and job.task.preview):
        return "This job has no preview prompts. Wire LoRA Sample Preview into LoRA Train and queue the workflow again."
    if job.awaited and action in ("resume", "extend", "delete"):
        return "This job's workflow waits in ComfyUI's queue already, to go on. Wait for it, or cancel it there."
    if action in REQUEUED and not job.graph and (action == "duplicate" or not job.task):
        return "The workflow that this job came from is not known. Queue it again by hand."
    return ""


def _any(states: tuple[State, ...]) -> str:
    return " or ".join(filter(None, (", ".join(states[:-1]), states[-1])))
