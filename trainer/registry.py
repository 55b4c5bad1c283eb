"""All jobs of this process, and those that earlier ones left on disk. One trains at a time."""

from __future__ import annotations

import datetime
import logging
import queue
import threading
from pathlib import Path

from .folder import JobFolder
from .job import Job
from .lease import Lease
from .task import Task

log = logging.getLogger(__name__)


class Jobs:
    """Finds the job of a task or starts one. The one thread that trains is a daemon: what it needs is on disk."""

    def __init__(self, folder: Path, lease: Lease) -> None:
        self._folder, self._lease, self._lock = folder, lease, threading.Lock()
        self._jobs: list[Job] = []
        self._queue: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def get(self, job_id: str) -> Job | None:
        """A job of this process by its id, in its newest run."""
        return next((job for job in reversed(self._jobs) if job.id == job_id), None)

    def all(self) -> list[Job]:
        """Every run of this process, oldest first."""
        return list(self._jobs)

    @property
    def cut_short(self) -> int:
        """How many runs of this process ended before their time. A node that handed on what such a run had learned must
        not be answered from ComfyUI's cache when it is queued again: this number tells."""
        return sum(job.ended.is_set() and job.state != "done" for job in self.all())

    def submit(self, task: Task) -> Job:
        """The job that trains, or has trained, exactly this task. One that was stopped, failed or died with its process
        goes on from its newest state; if there is none, a new one is queued. Raises OSError if no folder can be
        made."""
        fingerprint = task.fingerprint()
        with self._lock:
            running = next((j for j in reversed(self._jobs) if j.fingerprint == fingerprint), None)
            if running and (not running.ended.is_set() or running.reached(task.config)):
                return running
            folder = self._find(fingerprint) or self._new_folder(fingerprint)
            folder.create()
            job = Job(folder, task, self._lease, fingerprint)
            self._jobs.append(job)
            if job.restore():
                return job
            self._queue.put(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="livelora", daemon=True)
                self._thread.start()
            return job

    def stop_all(self, seconds: float) -> None:
        """Stops every job and waits that long for the step under way: for the end of the program."""
        for job in self.all():
            job.stop()
        for job in self.all():
            if not job.ended.wait(seconds):
                log.warning("LoRA training %s did not stop in %.0f s; it goes on from its last state next time",
                            job.id, seconds)

    def _find(self, fingerprint: str) -> JobFolder | None:
        for path in sorted(self._folder.glob("*/job.json"), reverse=True):
            folder = JobFolder(path.parent)
            facts = folder.read_job()
            if facts and facts.get("fingerprint") == fingerprint:
                return folder
        return None

    def _new_folder(self, fingerprint: str) -> JobFolder:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        return JobFolder(self._folder / f"{stamp}-{fingerprint[:8]}")

    def _work(self) -> None:
        while True:
            self._queue.get().run()
