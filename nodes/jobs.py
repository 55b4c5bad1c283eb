"""The one lease and the one training queue of this process, and everybody's jobs."""

from __future__ import annotations

import atexit
import logging
import threading
from collections import OrderedDict
from pathlib import Path

from filelock import FileLock, Timeout

from ..trainer.comfy.paths import own_folder
from ..trainer.comfy.turns import PromptTurns, prompt_id
from ..trainer.jobs.book import Jobs
from ..trainer.jobs.job import Listener
from ..trainer.jobs.lease import Lease
from ..trainer.jobs.states import Refused
from ..trainer.jobs.worker import TrainQueue

log = logging.getLogger(__name__)

DEFAULT = "default"
"""What ComfyUI calls its user where it has only one."""
REMEMBERED = 10000


class Everybody:
    """Whose jobs are whose, and who queued which prompt, which ComfyUI tells only when it is asked over HTTP."""

    def __init__(self) -> None:
        self.lease = Lease()
        self.listeners: list[Listener] = []
        """Hear of every job that is found or made from now on."""
        self._queue, self._lock = TrainQueue(self.lease), threading.Lock()
        self._jobs: dict[str, Jobs] = {}
        self._claims: list[FileLock] = []
        self._prompts: OrderedDict[str, str] = OrderedDict()
        self.turns = PromptTurns(self.lease, self._prompt_ended)

    def jobs_of(self, user: str = DEFAULT) -> Jobs:
        """Raises ValueError for no user of ComfyUI, Refused if another ComfyUI has this one's jobs."""
        with self._lock:
            if user not in self._jobs:
                folder = own_folder(user) / "jobs"
                self._claim(folder)
                self._jobs[user] = Jobs(folder, self.lease, self._queue, self.listeners)
            return self._jobs[user]

    def remember(self, prompt: str, user: str) -> None:
        """Who queued a prompt."""
        with self._lock:
            self._prompts[prompt] = user
            while len(self._prompts) > REMEMBERED:
                self._prompts.popitem(last=False)

    def jobs_of_prompt(self) -> Jobs:
        """The jobs of the person who queued the prompt that runs now."""
        return self.jobs_of(self._user())

    def scratch(self) -> Path:
        """Where to keep what can be made anew, for the person who queued the prompt that runs now."""
        return own_folder(self._user()) / "cache"

    def _user(self) -> str:
        with self._lock:
            return self._prompts.get(prompt_id() or "", DEFAULT)

    def close(self) -> None:
        """For the end of the program. Waits for the training thread itself, since one that is still freeing tensors
        while Python ends aborts the process."""
        seconds = [jobs.close() for jobs in list(self._jobs.values())]
        if seconds and not self._queue.join(max(seconds)):
            log.warning("A LoRA training did not stop in %.0f s; it goes on from its last state next time",
                        max(seconds))

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
        for jobs in list(self._jobs.values()):
            jobs.prompt_ended(prompt)


_EVERYBODY = Everybody()
LEASE, TURNS, LISTENERS = _EVERYBODY.lease, _EVERYBODY.turns, _EVERYBODY.listeners
jobs_of, jobs_of_prompt, remember_user = _EVERYBODY.jobs_of, _EVERYBODY.jobs_of_prompt, _EVERYBODY.remember
scratch = _EVERYBODY.scratch
atexit.register(_EVERYBODY.close)
