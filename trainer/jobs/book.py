"""Keeps all jobs of one person: those of this process, and those that earlier processes left on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import re
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..disk.files import sweep
from ..training.task import Task, fingerprint
from .folder import JobFolder
from .job import Job
from .lease import Lease, Sharing
from .saving import SaveAs, Shelf
from .states import ACTIVE, Refused, Wish
from .status import details, status
from .worker import Worker
from .workflow import Graph

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds that a training has to save its state when the program ends."""

Hears = Callable[[str, dict[str, Any]], None]
"""Takes an event ("progress", "sample" or "deleted") and its facts, as plain values, with the job's id as `job`."""


class Book:
    """Finds the job of a task or starts a new one, and does everything with jobs that needs the queue."""

    def __init__(self, folder: Path, lease: Lease, worker: Worker | None = None,
                 listeners: Sequence[Hears] = (), shelf: Shelf | None = None) -> None:
        """`worker` may be shared with other books, so that only one job of them all trains at a time. `listeners` hear
        of every job. `shelf` takes the files that jobs save for others."""
        self._folder, self._worker, self._listeners = folder, worker or Worker(lease), listeners
        self._shelf = shelf
        self._lock = threading.RLock()
        self._jobs: dict[str, Job] | None = None
        self._extended = 0

    def get(self, job_id: str) -> Job | None:
        """Returns the job with this id, or None if there is none."""
        return self._known().get(job_id)

    def all(self) -> list[Job]:
        """Returns all jobs, oldest first."""
        return list(self._known().values())

    def newest(self) -> Job | None:
        """Returns the job that was created last, or None if there is none."""
        return next(reversed(self._known().values()), None)

    @property
    def cut_short(self) -> int:
        """Counts how often jobs of this process ended before their time or were extended. A node that handed on what
        such a job had learned must not be answered from ComfyUI's cache when it is queued again. ComfyUI runs it again
        because this number has changed."""
        return self._extended + sum(job.cut_short for job in self.all())

    def status(self, job: Job) -> dict[str, Any]:
        """Returns what a person sees of a job, as plain values."""
        return status(job, self._worker)

    def details(self, job: Job) -> dict[str, Any]:
        """Returns `status` and what takes longer to find out."""
        return details(job, self._worker)

    # What a person wants. Each method raises Refused if the job's state does not allow it

    def submit(self, task: Task, graph: Graph | None = None, sharing: Sharing = "prompts first",
               expected: str = "", saves: tuple[SaveAs, ...] | None = None) -> Job:
        """Returns the job that trains, or has trained, exactly this task. A job that was paused, stopped, failed or
        died with its process goes on from its newest state. If no job has this task, a new one is queued. `expected` is
        the id of the job that it must be, and `saves` says how its LoRA is saved for others. Raises ValueError if it is
        another one, OSError if a new job cannot be written to disk."""
        parts = task.fingerprints()
        with self._lock:
            job = self._find(parts)
            if expected and (job is None or job.id != expected):
                raise ValueError(self._changed(expected, parts))
            if job is None:
                job = self._new(task, parts, sharing)
            with job.lock:
                job.was_queued(sharing, saves)
                if job.state not in ACTIVE:
                    self._go_on(job, task, graph)
                elif task.config.total_steps > job.config.total_steps and not job.why_not("extend"):
                    job.lengthen(task.config)
            return job

    def has_trained(self, task: Task) -> bool:
        """Tells whether there is nothing left to train of a task."""
        job = self._find(task.fingerprints())
        return job is not None and self._is_done(job, task)

    def _go_on(self, job: Job, task: Task, graph: Graph | None) -> None:
        if not self._is_done(job, task):
            job.folder.create()
            self._queue(job, task, graph)

    def _is_done(self, job: Job, task: Task) -> bool:
        """Tells whether a job need not go on. A finished one must if the recipe has more steps or if its LoRA is lost.
        """
        done = job.state == "done" and (job.history.step >= task.config.total_steps or task.config == job.config)
        return done and job.lora("last") is not None

    def resume(self, job: Job) -> bool:
        """Puts a job in the queue again. Returns False if its model is not in memory: the caller must then queue its
        workflow, or call `not_coming` if that fails."""
        with job.lock:
            job.check("resume")
            if job.task:
                self._queue(job)
                return True
            job.await_prompt()
            return False

    def extend(self, job: Job, steps: int) -> bool:
        """Lengthens a job by `steps` steps. Returns False if its model is not in memory, as `resume` does: the workflow
        must then be queued with that many more `extra_steps`. Raises ValueError if the longer recipe cannot be
        trained."""
        with job.lock:
            job.check("extend")
            longer = dataclasses.replace(job.config, extra_steps=job.config.extra_steps + steps)
            self._extended += 1
            if job.state in ("stopped", "done"):
                job.await_prompt()
                return False
            job.lengthen(longer)
            return True

    def pause(self, job: Job) -> None:
        """Pauses a job after the step under way. Its state is saved, and other jobs can train."""
        self._wish(job, "pause")

    def stop(self, job: Job) -> None:
        """Ends a job after the step under way. What it learned is kept, and it can go on from there."""
        self._wish(job, "stop")

    def export(self, job: Job) -> None:
        """Saves a job's LoRA where other nodes and programs look for it: at once, or after the step under way. Raises
        ValueError or OSError if it cannot be saved."""
        with job.lock:
            job.check("export")
            if job.state == "training":
                job.ask("export")
                return
        job.saving.now(None, job.graph)

    def discard(self, job: Job) -> None:
        """Ends a job after the step under way and removes what it learned."""
        self._wish(job, "discard")

    def move(self, job: Job, position: int) -> None:
        """Moves a job to a place in the queue; 0 is next."""
        with job.lock:
            job.check("move")
            if not self._worker.move(job, position):
                raise Refused("This job has just begun, so it waits no longer.")
            job.progress()

    def delete(self, job: Job) -> None:
        """Removes a job with all its files, for good. Raises OSError if they cannot be removed."""
        with self._lock, job.lock:
            job.check("delete")
            job.folder.remove()
            self._known().pop(job.id, None)
            job.notify("deleted")

    # What the program does

    def interrupt(self, job: Job) -> None:
        """Stops a job because somebody who meant it pressed the program's stop button."""
        with job.lock:
            job.interrupt()
            if not job.why_not("stop"):
                self.stop(job)

    def prompt_ended(self, prompt_id: str) -> None:
        """Notes that a prompt is over. A job that still waits for it to bring back its model waits no longer."""
        for job in self.all():
            if job.awaited == prompt_id:
                job.not_coming("Its workflow ended before it reached LoRA Train. ComfyUI's log says why.", prompt_id)

    def close(self) -> float:
        """Pauses every active job, because the program ends. Returns the seconds that this may take."""
        active = [job for job in (self._jobs or {}).values() if job.state in ACTIVE]
        for job in active:
            with job.lock:
                job.close()
                if not job.why_not("pause"):
                    self.pause(job)
        return PATIENCE + max((job.history.step_seconds for job in active), default=0.0)

    def _queue(self, job: Job, task: Task | None = None, graph: Graph | None = None) -> None:
        job.queue(task, graph)
        self._worker.put(job)

    def _wish(self, job: Job, wish: Wish) -> None:
        """Does what a person wishes: at once if the job does not train, otherwise after the step under way."""
        with job.lock:
            job.check(wish)
            if job.state == "paused" or (job.state == "queued" and self._worker.remove(job)):
                job.end(wish)
            else:
                job.want(wish)

    def _tell(self, listener: Hears, job: Job, event: str, facts: dict[str, Any]) -> None:
        listener(event, self.status(job) if event == "progress" else {"job": job.id, **facts})

    # On disk

    def _known(self) -> dict[str, Job]:
        with self._lock:
            if self._jobs is None:
                self._jobs = {}
                sweep(self._folder)  # removes what is left of jobs that were deleted only in part
                for folder in JobFolder.all_in(self._folder):
                    self._read(folder)
            return self._jobs

    def _read(self, folder: JobFolder) -> None:
        facts = folder.read_job()
        try:
            job = self._make(folder, facts or {})
        except (KeyError, TypeError, ValueError) as err:
            log.warning("The job in %s cannot be read (%s: %s); it is left alone", folder.path, type(err).__name__, err)
            return
        folder.tidy()
        job.history.read()
        if job.state in ACTIVE:
            job.enter("paused", job.where("ComfyUI ended", "Resume to go on."))
        elif job.state == "done" and not folder.has_lora():  # the disk was full, and the LoRA was lost with the process
            job.enter("paused", job.where("Its LoRA could not be written", "Resume to write it."))

    def _make(self, folder: JobFolder, facts: dict[str, Any]) -> Job:
        assert self._jobs is not None
        job = Job(folder, facts, [partial(self._tell, listener) for listener in self._listeners], self._shelf)
        self._jobs[job.id] = job
        return job

    def _new(self, task: Task, parts: dict[str, str], sharing: Sharing) -> Job:
        now, name = datetime.datetime.now().astimezone(), task.dataset.trigger_word or task.dataset.folder.name
        word = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:30]
        folder = JobFolder(self._folder / "-".join(filter(None, (
            now.strftime("%Y%m%d-%H%M%S"), word, fingerprint(parts)[:8]))))
        facts = {"id": folder.path.name, "name": name, "fingerprints": parts, "state": "stopped", "message": "",
                 "sharing": sharing, "created": now.isoformat(timespec="seconds"), "recipe": task.config.as_dict(),
                 "dataset": str(task.dataset.folder), "images": len(task.dataset.items)}
        try:
            folder.create()
            folder.write_job(facts)
        except OSError as err:
            with contextlib.suppress(OSError):
                folder.remove()
            raise OSError(f"The new job cannot be written to '{folder.path}' ({err.strerror or err}). Make room there, "
                          "or allow writing, then queue again.") from err
        return self._make(folder, facts)

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
