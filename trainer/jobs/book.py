"""All jobs of one person: those of this process, and those that earlier ones left on disk."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..disk.files import sweep
from ..recipe.choices import Sharing
from ..training.task import Task, fingerprint
from .folder import JobFolder
from .job import Job, Listener
from .lease import Lease
from .states import ACTIVE, COMING, Refused
from .worker import TrainQueue
from .workflow import Graph

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds that a training is given to save its state when the program ends."""


class Jobs:
    """Finds the job of a task or starts one. What can be done with several jobs at once is done here, under a lock."""

    def __init__(self, folder: Path, lease: Lease, queue: TrainQueue | None = None,
                 listeners: Sequence[Listener] = ()) -> None:
        """`queue`: shared with others; one of them all trains at a time. `listeners` hear of every job."""
        self._folder, self._queue, self._listeners = folder, queue or TrainQueue(lease), listeners
        self._lock = threading.RLock()
        self._jobs: dict[str, Job] | None = None
        self._extended = 0

    def get(self, job_id: str) -> Job | None:
        """A job by its id."""
        return self._known().get(job_id)

    def all(self) -> list[Job]:
        """Oldest first."""
        return list(self._known().values())

    def newest(self) -> Job | None:
        """The one that was started last."""
        return next(reversed(self._known().values()), None)

    @property
    def cut_short(self) -> int:
        """How often jobs of this process ended before their time, or were extended after it. A node that handed on what
        they had learned must not be answered from ComfyUI's cache when it is queued again: this number tells."""
        return self._extended + sum(job.cut_short for job in self.all())

    def submit(self, task: Task, graph: Graph | None = None, sharing: Sharing = "prompts first",
               expected: str = "") -> Job:
        """The job that trains, or has trained, exactly this task. One that was paused, stopped, failed or died with its
        process goes on from its newest state; if there is none, a new one is queued. `expected`: the id of the job that
        it must be. Raises ValueError if it is another, OSError if no folder can be made."""
        parts = task.fingerprints()
        with self._lock:
            job = self._find(parts)
            if expected and (job is None or job.id != expected):
                raise ValueError(self._changed(expected, parts))
            if job is None:
                job = self._new(task, parts, sharing)
            with job.lock:
                job.sharing, job.awaited = sharing, ""
                if job.state in ACTIVE:
                    job.attend(task.config)
                elif not job.reached(task.config):
                    job.folder.create()
                    job.begin(task, graph)
            return job

    def resume(self, job: Job) -> bool:
        """Puts a job in the queue again. False if its model is not in memory: its workflow must then be queued, or
        `not_coming` be called. Raises Refused."""
        with job.lock:
            job.check("resume")
            if job.task:
                job.begin()
                return True
            job.awaited = COMING
            job.notify("progress", job.status())
            return False

    def extend(self, job: Job, steps: int) -> bool:
        """Lengthens a job by so many steps. False as with `resume`; the workflow needs that many more `extra_steps`.
        Raises Refused, and ValueError for a recipe that cannot be trained."""
        with job.lock:
            job.check("extend")
            longer = dataclasses.replace(job.config, extra_steps=job.config.extra_steps + steps)
            self._extended += 1
            if job.state in ("stopped", "done"):
                job.awaited = COMING
                job.notify("progress", job.status())
                return False
            job.lengthen(longer)
            return True

    def move(self, job: Job, position: int) -> None:
        """To a place in the queue; 0 is next. Raises Refused."""
        with job.lock:
            job.check("move")
            if not self._queue.move(job, position):
                raise Refused("This job has just begun, so it waits no longer.")
            job.notify("progress", job.status())

    def delete(self, job: Job) -> None:
        """With all its files, for good. Raises Refused, and OSError if they cannot be removed."""
        with self._lock, job.lock:
            job.check("delete")
            job.folder.remove()
            self._known().pop(job.id, None)
            job.notify("deleted", {})

    def prompt_ended(self, prompt_id: str) -> None:
        """A prompt is over. If it was to bring a job's model back, it has not."""
        for job in self.all():
            if job.awaited == prompt_id:
                job.not_coming("Its workflow ended before it reached LoRA Train. ComfyUI's log says why.")

    def close(self) -> float:
        """Pauses every job, for the end of the program. Gives the seconds that this may take."""
        active = [job for job in (self._jobs or {}).values() if job.state in ACTIVE]
        for job in active:
            job.close()
        return PATIENCE + max((job.record.step_seconds for job in active), default=0.0)

    # On disk

    def _known(self) -> dict[str, Job]:
        with self._lock:
            if self._jobs is None:
                self._jobs = {}
                sweep(self._folder)  # a job of which half was removed
                for path in sorted(self._folder.glob("*/job.json")):
                    self._read(JobFolder(path.parent))
            return self._jobs

    def _read(self, folder: JobFolder) -> None:
        facts = folder.read_job()
        try:
            job = self._make(folder, facts or {})
        except (KeyError, TypeError, ValueError) as err:
            log.warning("The job in %s cannot be read (%s: %s); it is left alone", folder.path, type(err).__name__, err)
            return
        folder.tidy()
        job.record.read()
        if job.state in ACTIVE:
            job.enter("paused", job.where("ComfyUI ended", "Resume to go on."))
        elif job.state == "done" and not folder.has_lora():  # the disk was full, and the LoRA was lost with the process
            job.enter("paused", job.where("Its LoRA could not be written", "Resume to write it."))

    def _make(self, folder: JobFolder, facts: dict[str, Any]) -> Job:
        assert self._jobs is not None
        job = Job(folder, facts, self._queue, self._listeners)
        self._jobs[job.id] = job
        return job

    def _new(self, task: Task, parts: dict[str, str], sharing: Sharing) -> Job:
        now, name = datetime.datetime.now().astimezone(), task.dataset.trigger_word or task.dataset.folder.name
        word = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:30]
        folder = JobFolder(self._folder / "-".join(filter(None, (
            now.strftime("%Y%m%d-%H%M%S"), word, fingerprint(parts)[:8]))))
        folder.create()
        return self._make(folder, {
            "id": folder.path.name, "name": name, "fingerprints": parts, "state": "stopped", "message": "",
            "sharing": sharing, "created": now.isoformat(timespec="seconds"), "recipe": task.config.as_dict(),
            "dataset": str(task.dataset.folder), "images": len(task.dataset.items)})

    def _find(self, parts: dict[str, str]) -> Job | None:
        return next((job for job in reversed(self.all()) if job.fingerprints == parts), None)

    def _changed(self, expected: str, parts: dict[str, str]) -> str:
        job = self.get(expected)
        if job is None:
            return f"The job '{expected}' was deleted meanwhile. Queue the workflow again to start a new one."
        job.not_coming("")
        changed = sorted(k for k in {*parts, *job.fingerprints} if parts.get(k) != job.fingerprints.get(k))
        return (f"The job '{expected}' cannot go on, because this has changed since it began: {', '.join(changed)}. "
                "Change it back, or queue the workflow again to start a new job.")
