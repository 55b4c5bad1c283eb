"""Writes `job.json`, the file that describes a job."""

from __future__ import annotations

import datetime
import logging
from typing import Any

from .folder import JobFolder

log = logging.getLogger(__name__)


class Card:
    """Holds the facts by which a job is known after a restart. A disk that does not take a change ends no training:
    `job.json` is then out of date, `behind` says so, and it is written again at the next occasion."""

    def __init__(self, folder: JobFolder, facts: dict[str, Any]) -> None:
        self._folder, self.facts, self._is_there = folder, facts, folder.has_job()
        self.behind = ""
        """Why `job.json` is out of date; empty if it is not."""

    def write(self, **changes: Any) -> None:
        """Replaces `job.json`. Raises OSError only if there is none yet, because nobody would then know of the job."""
        changed = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self.facts |= {**changes, "changed": changed}
        try:
            self._folder.write_job(self.facts)
            self._is_there, self.behind = True, ""
        except OSError as err:
            if not self._is_there:
                raise
            log.warning("The state of job %s could not be written (%s)", self._folder.path.name, err)
            self.behind = f"The job's state could not be written: {err}. Training goes on; make room on the disk."
