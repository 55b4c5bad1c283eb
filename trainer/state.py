"""States a run can go on from: adapter, optimizer, schedule and step count, in safetensors and JSON."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .adapters import load_weights, weights
from .files import creating_folder
from .loop import Trainer

log = logging.getLogger(__name__)

KEEP = 2
"""Newest states kept of a run."""


def save(folder: Path, trainer: Trainer) -> Path:
    """Writes `folder/step_000500` whole or not at all, then removes the oldest. Raises OSError if it cannot."""
    path = folder / f"step_{trainer.steps_done:06}"
    tensors, numbers = _optimizer_state(trainer)
    with creating_folder(path) as temporary:
        adapter = {n: v.detach().cpu().contiguous() for n, v in weights(trainer.view).items()}
        save_file(adapter, temporary / "adapter.safetensors")
        save_file(tensors, temporary / "optimizer.safetensors")
        state = {"steps_done": trainer.steps_done, "optimizer": numbers, "lr_scheduler": _schedule(trainer)}
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
    for old in _states(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def load_newest(folder: Path, trainer: Trainer) -> int:
    """Puts the newest readable state into a new trainer and gives its step count; 0 if there is none."""
    for path in reversed(_states(folder)):
        try:
            read = _read(path)
        except (OSError, ValueError, SafetensorError) as err:
            log.warning("The state in %s cannot be read (%s); the one before it is taken", path, err)
            continue
        _apply(trainer, *read)
        return trainer.steps_done
    return 0


def _read(path: Path) -> tuple[dict, dict[str, Tensor], dict[str, Tensor]]:
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return state, load_file(path / "adapter.safetensors"), load_file(path / "optimizer.safetensors")


def _apply(trainer: Trainer, state: dict, adapter: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    load_weights(trainer.view, adapter)
    for index, param in enumerate(trainer.params):
        prefix = f"{index}."
        own = {n.removeprefix(prefix): t.to(param.device) for n, t in tensors.items() if n.startswith(prefix)}
        trainer.optimizer.state[param] = own | state["optimizer"]["params"][index]
    for group, values in zip(trainer.optimizer.param_groups, state["optimizer"]["groups"], strict=True):
        group.update(values)
    trainer.lr_scheduler.load_state_dict(trainer.lr_scheduler.state_dict() | state["lr_scheduler"])
    trainer.steps_done = state["steps_done"]


def _states(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step_*") if (p / "state.json").exists())


def _optimizer_state(trainer: Trainer) -> tuple[dict[str, Tensor], dict]:
    """The optimizer's tensors by `<parameter>.<name>`, and its numbers."""
    tensors, params = {}, []
    for index, param in enumerate(trainer.params):
        state = trainer.optimizer.state[param]
        tensors |= {f"{index}.{n}": v.cpu().clone().contiguous() for n, v in state.items() if torch.is_tensor(v)}
        params.append({n: v for n, v in state.items() if not torch.is_tensor(v)})
    groups = [{n: v for n, v in group.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
              for group in trainer.optimizer.param_groups]
    return tensors, {"params": params, "groups": groups}


def _schedule(trainer: Trainer) -> dict:
    state = trainer.lr_scheduler.state_dict()
    return {n: v for n, v in state.items() if isinstance(v, (int, float, list)) and n != "lr_lambdas"}
