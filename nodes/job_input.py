"""Makes the input with which a node asks for a job of the person who queued it."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer.jobs.folder import Which
from ..trainer.jobs.job import Job
from .jobs import EVERYBODY
from .types import refusal

NEWEST = "newest"


def job_input() -> io.Input:
    """Returns an input that offers "newest" and every job, newest first."""
    return io.Combo.Input("job", options=[NEWEST, *EVERYBODY.names()], default=NEWEST, tooltip=(
        "Which training: its name, when it was started, how far it is. newest: the one that was started last. Choose "
        "one to stay with it."))


def check_job(name: str | None) -> bool | str:
    """Returns True, or a sentence that says why there is no such job, for `validate_inputs`. A linked name is None and
    is checked later. So is "newest", because an earlier node of the same prompt may start that job."""
    return name in (None, NEWEST) or refusal(chosen, name)


def version(job: Job, which: Which | int) -> tuple:
    """Returns a value that changes when `job.lora(which)` would be another LoRA."""
    best = job.history.held_out.best if which == "best" else None
    return job.id, which, best[0] if best else job.history.step


def chosen(name: str) -> Job:
    """Returns the job that was asked for. Raises ValueError if there is none, Refused if another ComfyUI has the jobs.
    """
    book = EVERYBODY.book_of_prompt()
    job = book.newest() if name == NEWEST else book.get(str(name))
    if job is None and name == NEWEST:
        raise ValueError("There is no training job yet. Queue a workflow with LoRA Train first.")
    if job is None:
        raise ValueError(f"There is no job '{name}' here: it was deleted, or made on another machine. Choose one of "
                         f"the list, or '{NEWEST}'.")
    return job
