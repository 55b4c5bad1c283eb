"""Tells where the time of a step goes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch


class Stopwatch:
    """Divides time among the kinds of work that was done in it.

    A CUDA device works while the program is ahead of it, so the device itself notes when it gets to the end of a piece
    of work. The program waits for the device only in `seconds`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, Any]] = []

    def start(self) -> None:
        """Begins anew, at 0."""
        self._marks = [("", self._now())]

    def lap(self, work: str) -> None:
        """Counts the time since the last lap, or since the start, as time for `work`."""
        self._marks.append((work, self._now()))

    def seconds(self) -> Mapping[str, float]:
        """Returns the seconds for each kind of work since the start."""
        found: Counter[str] = Counter()
        if self._device.type == "cuda" and self._marks:
            self._marks[-1][1].synchronize()
        for (_, begin), (work, end) in zip(self._marks, self._marks[1:], strict=False):
            found[work] += begin.elapsed_time(end) / 1000 if self._device.type == "cuda" else end - begin
        return found

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
