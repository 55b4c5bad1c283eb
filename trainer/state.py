"""States a run can go on from: adapter, optimizer, schedule, averages and counts, in safetensors and JSON."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .adapters import load_weights, weights
from .files import creating_folder
from .loop import Trainer
from .optimizer_state import load_optimizer_state, load_schedule_state, optimizer_state, schedule_state

log = logging.getLogger(__name__)

KEEP = 2
"""Newest states kept of a run."""
PARTS = ("adapter", "optimizer", "average")
"""The safetensors files of a state."""


def save(folder: Path, trainer: Trainer) -> Path:
    """Writes `folder/step_000500` whole or not at all, then removes the oldest. Raises OSError if it cannot."""
    path = folder / f"step_{trainer.steps_done:06}"
    with trainer.averaged.lock:
        tensors, numbers = _take(trainer)
    with creating_folder(path) as temporary:
        for part in PARTS:
            save_file(tensors[part], temporary / f"{part}.safetensors")
        (temporary / "state.json").write_text(json.dumps(numbers), encoding="utf-8")
    for old in _states(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def load_newest(folder: Path, trainer: Trainer) -> int:
    """Puts the newest readable state into a new trainer and gives its step count; 0 if there is none."""
    for path in reversed(_states(folder)):
        try:
            numbers = json.loads((path / "state.json").read_text(encoding="utf-8"))
            tensors = {part: load_file(path / f"{part}.safetensors") for part in PARTS}
        except (OSError, ValueError, SafetensorError) as err:
            log.warning("The state in %s cannot be read (%s); the one before it is taken", path, err)
            continue
        _put(trainer, tensors, numbers)
        return trainer.steps_done
    return 0


def _take(trainer: Trainer) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    adapter = {n: v.detach().to("cpu", copy=True).contiguous() for n, v in weights(trainer.view).items()}
    optimizer, optimizer_numbers = optimizer_state(trainer.optimizer)
    average, average_numbers = trainer.averaged.state()
    numbers = {"steps_done": trainer.steps_done, "skipped": trainer.skipped,
               "skipped_in_a_row": trainer.skipped_in_a_row, "optimizer": optimizer_numbers,
               "lr_scheduler": schedule_state(trainer.lr_scheduler), "average": average_numbers}
    return {"adapter": adapter, "optimizer": optimizer, "average": average}, numbers


def _put(trainer: Trainer, tensors: dict[str, dict[str, Tensor]], numbers: dict[str, Any]) -> None:
    load_weights(trainer.view, tensors["adapter"])
    load_optimizer_state(trainer.optimizer, tensors["optimizer"], numbers["optimizer"])
    load_schedule_state(trainer.lr_scheduler, numbers["lr_scheduler"])
    trainer.averaged.load(tensors["average"], numbers["average"])
    trainer.steps_done, trainer.skipped = numbers["steps_done"], numbers["skipped"]
    trainer.skipped_in_a_row = numbers["skipped_in_a_row"]


def _states(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step_*") if (p / "state.json").exists())
