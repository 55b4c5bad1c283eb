"""The one job registry and the one lease of this process."""

from __future__ import annotations

import atexit

from ..trainer.comfy.paths import jobs_folder
from ..trainer.comfy.prompts import PromptTurns
from ..trainer.lease import Lease
from ..trainer.registry import Jobs

LEASE = Lease()
TURNS = PromptTurns(LEASE)
JOBS = Jobs(jobs_folder(), LEASE)

atexit.register(JOBS.stop_all, seconds=10)
