"""Holds the one lease and the one training thread of this process, and everybody's jobs."""

from __future__ import annotations

import atexit
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from ..trainer.comfy.flags import many_users
from ..trainer.comfy.loras import Loras
from ..trainer.comfy.paths import own_folder
from ..trainer.comfy.turns import PromptTurns, prompt_id
from ..trainer.jobs.book import Book, Hears
from ..trainer.jobs.folder import JobFolder
from ..trainer.jobs.lease import Lease
from ..trainer.jobs.states import Refused
from ..trainer.jobs.worker import Worker

log = logging.getLogger(__name__)

DEFAULT = "default"
"""The name that ComfyUI has for its user where there is only one."""
REMEMBERED = 10000


class Everybody:
    """Knows whose jobs are whose, and who queued which prompt. ComfyUI tells that only when it is asked over HTTP."""

    def __init__(self) -> None:
        self.lease = Lease()
        self._listeners: list[Hears] = []
        self._asking: Callable[[], str | None] = lambda: None
        self._worker, self._lock = Worker(self.lease), threading.Lock()
        self._books: dict[str, Book] = {}
        self._claims: list[FileLock] = []
        self._prompts: OrderedDict[str, str] = OrderedDict()
        self.turns = PromptTurns(self.lease, self._prompt_ended)

    def install(self, listener: Hears, prompts_queued: Callable[[], bool], asking: Callable[[], str | None]) -> None:
        """Connects the jobs with ComfyUI. Is called once, when ComfyUI starts. `listener` hears of every job,
        `prompts_queued` returns whether prompts run or wait to run, and `asking` returns the user whose request is
        being answered in this context, or None."""
        self._listeners.append(listener)
        self.lease.prompts_queued, self._asking = prompts_queued, asking
        atexit.register(self.close)

    def book_of(self, user: str = DEFAULT) -> Book:
        """Returns the jobs of a user. Raises ValueError if ComfyUI has no such user, Refused if another ComfyUI has the
        jobs of this one."""
        with self._lock:
            if user not in self._books:
                folder = self._jobs_folder(user)
                self._claim(folder)
                self._books[user] = Book(folder, self.lease, self._worker, self._listeners, Loras())
            return self._books[user]

    def names(self) -> list[str]:
        """Returns the names of the jobs of the person who asks for the list of nodes, newest first. The jobs are not
        read, because ComfyUI asks for the names when it starts."""
        folders = JobFolder.all_in(self._jobs_folder(self._asking() or DEFAULT))
        return sorted((folder.path.name for folder in folders), reverse=True)

    def remember(self, prompt: str, user: str) -> None:
        """Notes who queued a prompt."""
        with self._lock:
            self._prompts[prompt] = user
            while len(self._prompts) > REMEMBERED:
                self._prompts.popitem(last=False)

    def book_of_prompt(self) -> Book:
        """Returns the jobs of the person who queues a prompt now, or queued the one that runs now. Raises Refused if
        ComfyUI has many users and this is none of them: nobody could see or stop the job."""
        user = self._user()
        if user is None and many_users():
            raise Refused("This ComfyUI has several users, and the prompt's header comfy-user named none of them. "
                          "Queue it from ComfyUI's page, or send the id that POST /users gave, else nobody could see "
                          "or stop the training.")
        return self.book_of(user or DEFAULT)

    def scratch(self) -> Path:
        """Returns the folder for what can be made anew, of the same person as in `book_of_prompt`."""
        return own_folder(self._user() or DEFAULT) / "cache"

    def close(self) -> None:
        """Ends all trainings when the program ends. Waits for the training thread itself, because a thread that still
        frees tensors while Python ends aborts the process."""
        seconds = [book.close() for book in list(self._books.values())]
        if seconds and not self._worker.join(max(seconds)):
            log.warning("A LoRA training did not stop in %.0f s; it goes on from its last state next time",
                        max(seconds))

    def _user(self) -> str | None:
        with self._lock:
            return self._asking() or self._prompts.get(prompt_id() or "")

    def _jobs_folder(self, user: str) -> Path:
        return own_folder(user) / "jobs"

    def _claim(self, folder: Path) -> None:
        """Locks a folder until this process ends, however it ends, because two processes would write into the same
        jobs. Raises Refused if another process has locked it. filelock comes with torch."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            claim = FileLock(folder / ".lock")
            claim.acquire(timeout=0)
        except Timeout:
            raise Refused(f"Another ComfyUI that runs now has the jobs in '{folder}'. Close it, or start this one with "
                          "--user-directory and a folder of its own.") from None
        except (OSError, NotImplementedError) as err:
            log.warning("'%s' cannot be locked (%s). Do not run two ComfyUIs on it", folder, err)
        else:
            self._claims.append(claim)

    def _prompt_ended(self, prompt: str) -> None:
        for book in list(self._books.values()):
            book.prompt_ended(prompt)


EVERYBODY = Everybody()
