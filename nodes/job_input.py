"""The input with which a node asks for a job of the person who queued it."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer.comfy.paths import own_folder
from ..trainer.jobs.job import Job
from ..trainer.jobs.states import Refused
from .jobs import DEFAULT, jobs_of_prompt

NEWEST = "newest"


def job_input() -> io.Input:
    """A choice among "newest" and every job, newest first."""
    # Folders, not Jobs: ComfyUI asks for this when it starts, and jobs read their metrics.
    found = sorted((path.parent.name for path in own_folder(DEFAULT).glob("jobs/*/job.json")), reverse=True)
    return io.Combo.Input("job", options=[NEWEST, *found], default=NEWEST, tooltip=(
        "Which training. newest: the one that was started last. Choose one to stay with it."))


def check_job(name: str | None) -> bool | str:
    """For `validate_inputs`: True, or why there is no such job. A linked name is None and checked later, and so is
    whether there is a newest one: an earlier node of the same prompt may start it."""
    try:
        if name not in (None, NEWEST):
            chosen(name)
    except (ValueError, Refused) as err:
        return str(err)
    return True


def chosen(name: str) -> Job:
    """The job that was asked for. Raises ValueError if there is none, Refused as `jobs_of_prompt` does."""
    jobs = jobs_of_prompt()
    job = jobs.newest() if name == NEWEST else jobs.get(name)
    if job is None and name == NEWEST:
        raise ValueError("There is no training job yet. Queue a workflow with LoRA Train first.")
    if job is None:
        raise ValueError(f"There is no job '{name}' here: it was deleted, or made on another machine. Choose one of "
                         f"the list, or '{NEWEST}'.")
    return job
