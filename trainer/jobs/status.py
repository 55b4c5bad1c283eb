"""Describes a job as a person sees it, in plain values."""

from __future__ import annotations

from typing import Any

from .history import MOST_LOSSES
from .job import Job
from .states import ACTIONS
from .worker import Worker


def status(job: Job, worker: Worker) -> dict[str, Any]:
    """Returns what changes from step to step. `position` is how many jobs wait before it, None if it does not wait, and
    `behind` is the name of the job that trains meanwhile."""
    position, training = worker.position(job), worker.training
    with job.lock:
        facts = job.history.facts(job.config.total_steps)
        left, warnings = facts.pop("seconds_left"), facts.pop("warnings")
        return {"job": job.id, "name": job.card.facts["name"], "state": job.state,
                "message": "Its workflow waits in ComfyUI's queue." if job.awaited else job.not_queued or job.message,
                "actions": [name for name in ACTIONS if not job.why_not(name)], "position": position,
                "behind": training.card.facts["name"] if training and position is not None else "",
                "sharing": job.sharing, "created": job.card.facts["created"], **facts,
                "saves": [how.name for how in job.saving.wanted], "saved": job.saving.files,
                "memory": job.plan.as_dict() if job.plan else None,
                "warnings": [*warnings, *filter(None, [job.card.behind])],
                "eta": left if job.state == "training" else None}


def details(job: Job, worker: Worker) -> dict[str, Any]:
    """Returns `status` and what takes longer to find out."""
    return {**status(job, worker), "losses": job.history.losses[-MOST_LOSSES:], "samples": job.folder.samples(),
            "snapshots": job.folder.snapshots(), "disk_bytes": job.folder.bytes_used(),
            "recipe": job.config.as_dict(), "dataset": job.card.facts["dataset"], "images": job.card.facts["images"],
            "preview": bool(job.task and job.task.preview)}
