"""What a job has recorded so far: losses, held-out losses, warnings; in memory and in its folder."""

from __future__ import annotations

import contextlib
import logging
import statistics
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

from ..training.trainer import StepResult
from ..training.validation import Curve
from .folder import JobFolder
from .tensorboard import Board

log = logging.getLogger(__name__)

MOST_LOSSES = 10000
"""Newest losses that a person is given."""
Tolerated = Literal["metrics", "state", "LoRA", "best LoRA", "workflow"]
TOLERATED: dict[Tolerated, str] = {
    "metrics": "The metrics could not be recorded",
    "state": "The state could not be saved",
    "LoRA": "The LoRA could not be written to the job's folder",
    "best LoRA": "The best LoRA could not be written to the job's folder",
    "workflow": "The workflow could not be written to the job's folder",
}
"""What a disk may refuse to take without an end to the training: it is in memory still, or can be made again."""


class History:
    """Grows by a line a step. A disk that is full or read-only costs lines in the file, never the training."""

    def __init__(self, folder: JobFolder) -> None:
        self._folder = folder
        self.step, self.skipped = 0, 0
        self.learning_rate: float | None = None
        self.losses: list[float] = []
        """Of every step that was not skipped."""
        self.held_out = Curve()
        self.warnings: list[str] = []
        self._seconds: deque[float] = deque(maxlen=20)
        self._board: Board | None = None

    def read(self, up_to: int | None = None) -> None:
        """Takes up what an earlier process recorded; with `up_to`, drops for good what came after that step."""
        lines = self._folder.metrics()
        if up_to is not None:
            self._board = Board(self._folder.path, up_to)
            lines = [line for line in lines if up_to and line["step"] <= up_to]
            with self.tolerating("metrics"):
                self._folder.rewind_metrics(up_to)
        steps = [line for line in lines if "loss" in line]
        self.step = up_to if up_to is not None else max((line["step"] for line in steps), default=0)
        self.losses = [line["loss"] for line in steps if line["loss"] is not None]
        self.skipped = len(steps) - len(self.losses)
        bases = [line["validation_base"] for line in lines if "validation_base" in line]
        points = [(line["step"], line["validation"]) for line in lines if "validation" in line]
        self.held_out = Curve(bases[0] if bases else None, points)

    def add_step(self, result: StepResult, seconds: float) -> None:
        """A step that was taken, or skipped."""
        self.step, self.learning_rate = self.step + 1, result.learning_rate
        self._seconds.append(seconds)
        loss, norm = (None, None) if result.skipped else (result.loss, result.grad_norm)  # JSON has no NaN
        if loss is None:
            self.skipped += 1
            self.warn("Steps were skipped because their loss or gradient was no number. If there are many, lower the "
                      "learning rate.")
        else:
            self.losses.append(loss)
        self._append({"step": self.step, "loss": loss, "grad_norm": norm, "learning_rate": result.learning_rate,
                      "seconds": round(seconds, 4)})

    def add_base(self, loss: float) -> None:
        """The held-out loss of the model without the adapter."""
        self.held_out.base = loss
        self._append({"step": self.step, "validation_base": loss})

    def add_held_out(self, loss: float) -> bool:
        """The held-out loss after the last step. True if it is a new best."""
        self.held_out.points.append((self.step, loss))
        self._append({"step": self.step, "validation": loss})
        return self.held_out.best == (self.step, loss)

    def _append(self, facts: dict[str, Any]) -> None:
        with self.tolerating("metrics"):
            self._folder.append_metrics(facts)
            if self._board:
                self._board.add(facts)

    @property
    def step_seconds(self) -> float:
        """How long a step takes; 0 before the first one of this process."""
        return statistics.median(self._seconds) if self._seconds else 0.0

    @contextlib.contextmanager
    def tolerating(self, what: Tolerated) -> Iterator[None]:
        """What fails to be written inside is reported, and training goes on."""
        try:
            yield
        except OSError as err:
            self.warn(f"{TOLERATED[what]}: {err}. Training goes on; make room on the disk.")

    def warn(self, message: str) -> None:
        """Tells a person something, once."""
        log.warning("%s", message)
        if message not in self.warnings:
            self.warnings.append(message)

    def facts(self, total: int) -> dict[str, Any]:
        """What a person sees of it, as plain values. `total`: steps of the whole run."""
        curve = self.held_out
        overfitting = curve.overfitting(self.losses)
        return {
            "step": self.step, "steps": total, "skipped": self.skipped, "learning_rate": self.learning_rate,
            "loss": statistics.fmean(self.losses[-20:]) if self.losses else None,
            "validation": curve.points, "validation_base": curve.base, "best": curve.best,
            "seconds_left": round((total - self.step) * self.step_seconds) if self._seconds else None,
            "warnings": [*self.warnings, *([overfitting] if overfitting else [])],
        }
