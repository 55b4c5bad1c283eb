"""Keeps the jobs that wait for their turn, and trains them in one thread, one after the other."""

from __future__ import annotations

import logging
import threading

from .job import Job
from .lease import Lease
from .run import Run

log = logging.getLogger(__name__)


class Worker:
    """Trains queued jobs in a thread. The thread is a daemon, because what it needs is on disk, and ends when there is
    nothing to train."""

    def __init__(self, lease: Lease) -> None:
        self._lease, self._lock = lease, threading.Lock()
        self._jobs: list[Job] = []
        self.training: Job | None = None
        """The job whose turn it is."""
        self._thread: threading.Thread | None = None

    def put(self, job: Job) -> None:
        """Adds a job at the end of the queue."""
        with self._lock:
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="livelora", daemon=True)
                self._thread.start()

    def remove(self, job: Job) -> bool:
        """Takes a job out of the queue. Returns False if it has had its turn already."""
        with self._lock:
            found = job in self._jobs
            if found:
                self._jobs.remove(job)
            return found

    def move(self, job: Job, position: int) -> bool:
        """Moves a job to a place in the queue: 0 is next, and a place beyond the end is the end. Returns False if the
        job has had its turn already."""
        with self._lock:
            found = job in self._jobs
            if found:
                self._jobs.remove(job)
                self._jobs.insert(position, job)
            return found

    def position(self, job: Job) -> int | None:
        """Returns how many jobs are before this one, or None if it does not wait."""
        with self._lock:
            return self._jobs.index(job) if job in self._jobs else None

    def join(self, seconds: float) -> bool:
        """Waits for the thread to end. Returns False if it has not, because it has jobs or takes longer."""
        thread = self._thread
        if thread:
            thread.join(seconds)
        return not (thread and thread.is_alive())

    def _work(self) -> None:
        while True:
            with self._lock:
                self.training = None
                if not self._jobs:
                    self._thread = None
                    return
                self.training = job = self._jobs.pop(0)
            with self._lease.training(lambda job=job: job.sharing):
                self._train(job)

    def _train(self, job: Job) -> None:
        """Trains a job from its newest state until it is done or a person wants otherwise. If that fails, the job
        enters the state "failed"."""
        again = True
        while again:
            try:
                Run(job, job.start(), self._lease).go()
            except Exception as err:
                log.exception("LoRA training failed")
                job.rest("failed", f"{type(err).__name__}: {err}")
            finally:
                job.lend(None)
            again = job.wish == "extend"
