"""Saves and loads states that a run can go on from: adapter, optimizer, schedule, averages and counts, in safetensors
and JSON. Beside them lies the LoRA of that step, ready to use."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..disk.files import creating_folder, remove_folder, save_tensors
from ..lora.file import Lora
from ..lora.inject import load_weights, weights
from ..recipe.optimizers import OPTIMIZERS
from .optimizer_state import load_optimizer_state, load_schedule_state, optimizer_state, schedule_state
from .trainer import Trainer

log = logging.getLogger(__name__)

PARTS = ("adapter", "optimizer", "average")
"""The safetensors files of a state."""


def size(trainer: Trainer) -> int:
    """Returns about how many bytes a state takes: the adapter twice (once as a LoRA), optimizer state and average."""
    held = [*trainer.params, *trainer.params, *trainer.averaged.state()[0].values(),
            *(v for entry in trainer.optimizer.state.values() for v in entry.values() if isinstance(v, Tensor))]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def room(folder: Path, trainer: Trainer) -> int:
    """Returns the bytes that a training will still write: its states, and one more while the newest replaces the
    oldest. What an optimizer keeps of small tensors, and of whole rows and columns, is not counted."""
    adapter = sum(p.numel() * p.element_size() for p in trainer.params)
    kept = OPTIMIZERS[trainer.config.optimizer]
    moments = sum(p.numel() for p in trainer.params) * kept.moments * (1 if kept.eight_bit else 4)
    average = sum(tensor.numel() * tensor.element_size() for tensor in trainer.averaged.state()[0].values())
    written = sum(file.stat().st_size for path in _states(folder) for file in path.iterdir())
    return max(0, (2 * adapter + moments + average) * (trainer.config.keep_states + 1) - written)


def save(folder: Path, trainer: Trainer, lora: Lora | None, keep: int) -> Path:
    """Writes `folder/step_000500` whole or not at all, then removes all states but the newest `keep`. Raises OSError if
    it cannot be written."""
    path = folder / f"step_{trainer.steps_done:06}"
    with trainer.averaged.lock:
        tensors, numbers = _take(trainer)
    with creating_folder(path) as temporary:
        for part in PARTS:
            save_tensors(temporary / f"{part}.safetensors", tensors[part])
        if lora is not None:
            save_tensors(temporary / "lora.safetensors", dict(lora), lora.metadata)
        (temporary / "state.json").write_text(json.dumps(numbers), encoding="utf-8")
    _remove(_states(folder)[:-keep])
    return path


def load_newest(folder: Path, trainer: Trainer) -> list[str]:
    """Puts the newest whole state into a new trainer, if there is one. Returns the names of newer states that were not
    whole. They are removed, because they would push out the good ones that are written from now on. Raises OSError if
    a state is whole but cannot be read now."""
    unreadable = []
    for path in reversed(_states(folder)):
        try:
            numbers = json.loads((path / "state.json").read_text(encoding="utf-8"))
            tensors = {part: load_file(path / f"{part}.safetensors") for part in PARTS}
        except (OSError, ValueError, SafetensorError) as err:
            if isinstance(err, OSError) and all((path / f"{part}.safetensors").exists() for part in PARTS):
                raise  # it is there, and can be read another time: memory is short, or another program has it open
            log.warning("The state in %s cannot be read (%s); the one before it is taken", path, err)
            unreadable.append(path)
            continue
        _put(trainer, tensors, numbers)
        break
    _remove(unreadable)
    return [path.name for path in unreadable]


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


def _remove(states: list[Path]) -> None:
    for path in states:
        with contextlib.suppress(OSError):
            remove_folder(path)


def _states(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step_*") if (p / "state.json").exists())
