"""The one lease and the one training thread of this process, and everybody's jobs."""

from __future__ import annotations

import atexit
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from ..trainer.comfy.paths import own_folder
from ..trainer.comfy.turns import PromptTurns, prompt_id
from ..trainer.jobs.book import Book, Hears
from ..trainer.jobs.folder import JobFolder
from ..trainer.jobs.lease import Lease
from ..trainer.jobs.states import Refused
from ..trainer.jobs.worker import Worker

log = logging.getLogger(__name__)

DEFAULT = "default"
"""What ComfyUI calls its user where it has only one."""
REMEMBERED = 10000


class Everybody:
    """Whose jobs are whose, and who queued which prompt, which ComfyUI tells only when it is asked over HTTP."""

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
        """Called once, when ComfyUI starts. `listener` hears of every job; `prompts_queued`: whether prompts run or
        wait to run; `asking`: the user whose request is being answered in this context, if it is one."""
        self._listeners.append(listener)
        self.lease.prompts_queued, self._asking = prompts_queued, asking
        atexit.register(self.close)

    def book_of(self, user: str = DEFAULT) -> Book:
        """The jobs of a user. Raises ValueError for no user of ComfyUI, Refused if another ComfyUI has this one's."""
        with self._lock:
            if user not in self._books:
                folder = self._jobs_folder(user)
                self._claim(folder)
                self._books[user] = Book(folder, self.lease, self._worker, self._listeners)
            return self._books[user]

    def names(self) -> list[str]:
        """The jobs of the person who asks for the list of nodes, newest first. They are not read: ComfyUI asks for this
        when it starts."""
        folders = JobFolder.all_in(self._jobs_folder(self._asking() or DEFAULT))
        return sorted((folder.path.name for folder in folders), reverse=True)

    def remember(self, prompt: str, user: str) -> None:
        """Notes who queued a prompt."""
        with self._lock:
            self._prompts[prompt] = user
            while len(self._prompts) > REMEMBERED:
                self._prompts.popitem(last=False)

    def book_of_prompt(self) -> Book:
        """The jobs of the person who queued the prompt that runs now."""
        return self.book_of(self._user())

    def scratch(self) -> Path:
        """Where to keep what can be made anew, for the person who queued the prompt that runs now."""
        return own_folder(self._user()) / "cache"

    def close(self) -> None:
        """For the end of the program. Waits for the training thread itself, since one that is still freeing tensors
        while Python ends aborts the process."""
        seconds = [book.close() for book in list(self._books.values())]
        if seconds and not self._worker.join(max(seconds)):
            log.warning("A LoRA training did not stop in %.0f s; it goes on from its last state next time",
                        max(seconds))

    def _user(self) -> str:
        with self._lock:
            return self._prompts.get(prompt_id() or "", DEFAULT)

    def _jobs_folder(self, user: str) -> Path:
        return own_folder(user) / "jobs"

    def _claim(self, folder: Path) -> None:
        """Until this process ends, however it ends: two would write into the same jobs. filelock comes with torch."""
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
