"""Records losses, held-out losses and warnings of a job, in memory and in its folder."""

from __future__ import annotations

import contextlib
import logging
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Any, Literal

from ..training.trainer import StepResult
from ..training.validation import Curve
from .folder import JobFolder
from .tensorboard import Board

log = logging.getLogger(__name__)

MOST_LOSSES = 10000
"""The largest number of losses that a person gets. Older ones are left out."""
Tolerated = Literal["metrics", "state", "LoRA", "best LoRA", "LoRA file", "workflow"]
TOLERATED: dict[Tolerated, str] = {
    "metrics": "The metrics could not be recorded",
    "state": "The state could not be saved",
    "LoRA": "The LoRA could not be written to the job's folder",
    "best LoRA": "The best LoRA could not be written to the job's folder",
    "LoRA file": "The LoRA is not in models/loras",
    "workflow": "The workflow could not be written to the job's folder",
}
"""The warning for each thing whose writing may fail without ending the training, because it is still in memory or can
be made again."""


class History:
    """Keeps a line per step. What a disk that is full or read-only does not take is written as soon as it does; until
    then it would be lost with the process, but never the training."""

    def __init__(self, folder: JobFolder) -> None:
        self._folder = folder
        self.step, self.skipped = 0, 0
        self.learning_rate: float | None = None
        self.step_loss: float | None = None
        """The loss of the last step; None if it was skipped."""
        self.peak: int | None = None
        """The most bytes of the device that the last step used; None if the device does not tell."""
        self.losses: list[float] = []
        """The loss of every step that was not skipped."""
        self.held_out = Curve()
        self.warnings: list[str] = []
        self.spent: dict[str, float] = defaultdict(float)
        """The seconds that each kind of work took in this process, waiting for prompts among them."""
        self.of_peak: deque[float] = deque(maxlen=20)
        """The share of the device's peak that each of the last steps came to."""
        self._since: dict[str, float] = defaultdict(float)  # the same as `spent`, since the last step's line
        self._seconds: deque[float] = deque(maxlen=20)
        self._board: Board | None = None
        self._unwritten: list[dict[str, Any]] = []
        """The lines that the disk has not taken yet: the newest."""

    def read(self, up_to: int | None = None) -> None:
        """Reads what the folder has on record. With `up_to`, it drops for good what came after that step."""
        lines = self._folder.metrics(self._unwritten)
        if up_to is not None:
            self._board = Board(self._folder.path, up_to)
            self._unwritten = [line for line in self._unwritten if line["step"] <= up_to]
            lines = [line for line in lines if up_to and line["step"] <= up_to]
            with self.tolerating("metrics"):
                self._folder.rewind_metrics(up_to)
        steps = [line for line in lines if "loss" in line]
        self.step = up_to if up_to is not None else max((line["step"] for line in steps), default=0)
        self.losses = [line["loss"] for line in steps if line["loss"] is not None]
        self.step_loss = steps[-1]["loss"] if steps else None
        self.skipped = len(steps) - len(self.losses)
        bases = [line["validation_base"] for line in lines if "validation_base" in line]
        points = [(line["step"], line["validation"]) for line in lines if "validation" in line]
        self.held_out = Curve(bases[0] if bases else None, points)

    def spend(self, work: str, seconds: float) -> None:
        """Adds to the time that a kind of work took."""
        self.spent[work] += seconds
        self._since[work] += seconds

    @contextlib.contextmanager
    def spending(self, work: str) -> Iterator[None]:
        """Adds the time inside to what a kind of work took."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.spend(work, time.perf_counter() - began)

    def add_step(self, result: StepResult, seconds: float) -> None:
        """Records a step that was taken or skipped, and where the time since the one before has gone."""
        self.step, self.learning_rate = self.step + 1, result.learning_rate
        self._seconds.append(seconds)
        loss, norm = (None, None) if result.skipped else (result.loss, result.grad_norm)  # JSON has no NaN
        self.step_loss = loss
        self.peak = result.peak
        for work, taken in result.spent.items():
            self.spend(work, taken)
        if result.of_peak is not None:
            self.of_peak.append(result.of_peak)
        if loss is None:
            self.skipped += 1
            self.warn("Steps were skipped because their loss or gradient was no number. If there are many, lower the "
                      "learning rate.")
        else:
            self.losses.append(loss)
        device = {"peak_bytes": result.peak, "of_peak": result.of_peak and round(result.of_peak, 4)}
        self._append({"step": self.step, "loss": loss, "grad_norm": norm, "learning_rate": result.learning_rate,
                      "seconds": round(seconds, 4), "spent": {work: round(s, 4) for work, s in self._since.items()},
                      **{name: value for name, value in device.items() if value is not None}})
        self._since.clear()

    def add_base(self, loss: float) -> None:
        """Records the held-out loss of the model without the adapter."""
        self.held_out.base = loss
        self._append({"step": self.step, "validation_base": loss})

    def add_held_out(self, loss: float) -> bool:
        """Records the held-out loss after the last step. Returns True if it is a new best."""
        self.held_out.points.append((self.step, loss))
        self._append({"step": self.step, "validation": loss})
        return self.held_out.best == (self.step, loss)

    def _append(self, facts: dict[str, Any]) -> None:
        self._unwritten.append(facts)
        with self.tolerating("metrics"):
            self._folder.append_metrics(self._unwritten)
            self._unwritten.clear()
            if self._board:
                self._board.add(facts)

    @property
    def step_seconds(self) -> float:
        """Returns the seconds that a step takes: the median of the last 20, or 0 before the process's first step."""
        return statistics.median(self._seconds) if self._seconds else 0.0

    @contextlib.contextmanager
    def tolerating(self, what: Tolerated) -> Iterator[None]:
        """Turns an OSError raised inside into a warning, so that training goes on."""
        try:
            yield
        except OSError as err:
            self.warn(f"{TOLERATED[what]}: {err}. Training goes on; make room on the disk.")

    def warn(self, message: str) -> None:
        """Logs a message and adds it to the warnings that a person sees, if it is not there yet."""
        log.warning("%s", message)
        if message not in self.warnings:
            self.warnings.append(message)

    def facts(self, total: int) -> dict[str, Any]:
        """Returns what a person sees of the history, as plain values. `total` is the steps of the whole run."""
        curve = self.held_out
        overfitting = curve.overfitting(self.losses)
        return {
            "step": self.step, "steps": total, "skipped": self.skipped, "learning_rate": self.learning_rate,
            "loss": statistics.fmean(self.losses[-20:]) if self.losses else None, "step_loss": self.step_loss,
            "validation": curve.points, "validation_base": curve.base, "best": curve.best,
            "seconds_per_step": self.step_seconds or None, "spent": dict(self.spent),
            "of_peak": statistics.fmean(self.of_peak) if self.of_peak else None,
            "seconds_left": round((total - self.step) * self.step_seconds) if self._seconds else None,
            "warnings": [*self.warnings, *([overfitting] if overfitting else [])],
        }
