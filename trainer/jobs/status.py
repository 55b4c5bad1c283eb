"""Describes a job as a person sees it, in plain values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .history import MOST_LOSSES
from .job import Job
from .states import ACTIONS


def status(job: Job, position: Callable[[Job], int | None]) -> dict[str, Any]:
    """Returns what changes from step to step. `position` says how many jobs are before it; None if it does not wait."""
    with job.lock:
        facts = job.history.facts(job.config.total_steps)
        left, warnings = facts.pop("seconds_left"), facts.pop("warnings")
        return {"job": job.id, "name": job.card.facts["name"], "state": job.state,
                "message": "Its workflow waits in ComfyUI's queue." if job.awaited else job.not_queued or job.message,
                "actions": [name for name in ACTIONS if not job.why_not(name)], "position": position(job),
                "sharing": job.sharing, "created": job.card.facts["created"], **facts,
                "saves": [how.name for how in job.saving.wanted], "saved": job.saving.files,
                "warnings": [*warnings, *filter(None, [job.card.behind])],
                "eta": left if job.state == "training" else None}


def details(job: Job, position: Callable[[Job], int | None]) -> dict[str, Any]:
    """Returns `status` and what takes longer to find out."""
    return {**status(job, position), "losses": job.history.losses[-MOST_LOSSES:], "samples": job.folder.samples(),
            "snapshots": job.folder.snapshots(), "disk_bytes": job.folder.bytes_used(),
            "recipe": job.config.as_dict(), "dataset": job.card.facts["dataset"], "images": job.card.facts["images"],
            "preview": bool(job.task and job.task.preview)}
