"""Reads and writes a job's folder, which has everything that the job needs to go on after a crash.

It holds `job.json` (what the job is), `graph.json` (the workflow it came from), `metrics.jsonl` (one line per step),
`state/step_000500/` (a state, with the LoRA of that step), `samples/`, and the LoRA: the last one in
`lora.safetensors`, the one with the lowest held-out loss in `lora_best.safetensors`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..data.pictures.pixels import to_image
from ..disk.files import append_whole, remove_folder, replacing, sweep, write_atomic, write_json, write_tensors
from ..lora.file import Lora, load
from .workflow import Graph

Which = Literal["last", "best"]
RESERVE = 200 * 2**20
"""Bytes of a disk that training leaves free for everything else."""


class JobFolder:
    """Reads and writes one job's folder. Methods that write or remove raise OSError if they cannot."""

    def __init__(self, path: Path) -> None:
        self.path, self.states = path, path / "state"
        self._samples, self._metrics = path / "samples", path / "metrics.jsonl"
        self._loras = {"last": path / "lora.safetensors", "best": path / "lora_best.safetensors"}

    def create(self) -> None:
        """Makes the job's folders, if they are not there."""
        self.states.mkdir(parents=True, exist_ok=True)
        self._samples.mkdir(exist_ok=True)

    def tidy(self) -> None:
        """Removes what a process that was killed left half-written."""
        for folder in (self.path, self.states, self._samples):
            sweep(folder)

    def remove(self) -> None:
        """Removes the whole folder."""
        remove_folder(self.path)

    def discard(self) -> None:
        """Removes what was learned, not what describes the job. If one part cannot be removed, the rest still is."""
        with contextlib.ExitStack() as each:
            for folder in (self.states, self._samples, self.path / "tensorboard"):
                each.callback(remove_folder, folder)
            for file in (self._metrics, *self._loras.values()):
                each.callback(file.unlink, missing_ok=True)

    def bytes_used(self) -> int:
        """Returns the bytes that the folder takes on the disk."""
        total = 0
        for folder, _, files in os.walk(self.path):
            for file in files:
                with contextlib.suppress(OSError):  # it may be replaced while we look
                    total += os.stat(os.path.join(folder, file)).st_size
        return total

    def check_room(self, needed: int, what: str) -> None:
        """Raises OSError, before anything is written, if the disk would be full after `needed` bytes."""
        free = shutil.disk_usage(self.path).free
        if free < needed + RESERVE:
            raise OSError(f"{what} needs {needed / 2**20:.0f} MiB, and the disk of {self.path} has {free / 2**20:.0f} "
                          f"MiB left ({RESERVE // 2**20} MiB are left free). Make room, delete jobs you no longer "
                          "need, or lower keep_states")

    @classmethod
    def all_in(cls, home: Path) -> list[JobFolder]:
        """Returns the folders of all jobs below `home`, oldest first, without reading them."""
        return [cls(path.parent) for path in sorted(home.glob("*/job.json"))]

    def has_job(self) -> bool:
        """Returns whether there is a `job.json`."""
        return (self.path / "job.json").exists()

    def read_job(self) -> dict[str, Any] | None:
        """Returns the content of `job.json`, or None if it is missing or cannot be read."""
        try:
            return json.loads((self.path / "job.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write_job(self, facts: dict[str, Any]) -> None:
        """Replaces `job.json`."""
        write_json(self.path / "job.json", facts)

    def read_graph(self) -> Graph | None:
        """Returns the workflow that the job came from, or None if it is missing or cannot be read."""
        try:
            return Graph(**json.loads((self.path / "graph.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write_graph(self, graph: Graph) -> None:
        """Replaces `graph.json`."""
        write_json(self.path / "graph.json", graph.as_dict())

    def metrics(self, newer: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
        """Returns all lines of `metrics.jsonl` and those that are not in it yet, except a line that a crash cut short
        and steps that were done again later. Such steps are still in the file if the folder was read-only and the file
        could not be rewound."""
        found: list[dict[str, Any]] = []
        for facts in (*self._read_metrics(), *newer):
            while "loss" in facts and found and found[-1]["step"] >= facts["step"]:
                found.pop()
            found.append(facts)
        return found

    def _read_metrics(self) -> Iterator[dict[str, Any]]:
        with contextlib.suppress(FileNotFoundError):
            for line in self._metrics.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    yield json.loads(line)

    def rewind_metrics(self, step: int) -> list[dict[str, Any]]:
        """Drops what was recorded after `step`, which will be done again, and returns the rest. Step 0 drops it all."""
        kept = [m for m in self.metrics() if m["step"] <= step] if step else []
        write_atomic(self._metrics, "".join(json.dumps(m) + "\n" for m in kept).encode())
        return kept

    def append_metrics(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Adds lines to `metrics.jsonl`, all of them or none."""
        append_whole(self._metrics, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def write_sample(self, step: int, index: int, image: Tensor, texts: Mapping[str, Any]) -> str:
        """Saves a picture (h, w, 3) in 0…1 as PNG, with `texts` as its text chunks (JSON). Returns its file name."""
        name = _sample_name(step, index)
        about = PngInfo()
        for key, value in texts.items():
            about.add_text(key, json.dumps(value))
        with replacing(self._samples / name) as temporary:
            to_image(image).save(temporary, "PNG", pnginfo=about)
        return name

    def sample_path(self, name: str) -> Path | None:
        """Returns the file of a sample by its name, or None if there is no such sample."""
        return next((p for p in self._samples.glob("*.png") if p.name == name), None)

    def samples(self) -> list[str]:
        """Returns the names of all samples, oldest first."""
        return sorted(p.name for p in self._samples.glob("step_*.png"))

    def has_sample(self, step: int, index: int) -> bool:
        """Returns whether the picture of prompt `index` was drawn at this step."""
        return (self._samples / _sample_name(step, index)).exists()

    def newest_sample(self) -> Path | None:
        """Returns the file of the newest picture of the first prompt, or None if there is none."""
        return max(self._samples.glob("step_*_00.png"), default=None)

    def write_lora(self, lora: Lora, which: Which) -> None:
        """Replaces the job's last or best LoRA file."""
        write_tensors(self._loras[which], dict(lora), lora.metadata)

    def has_lora(self) -> bool:
        """Returns whether the last LoRA is there."""
        return self._loras["last"].exists()

    def keep_lora(self, lora: Lora | None) -> None:
        """Writes `lora` as the job's last LoRA, where others look for it. If it is None, writes `newest_lora`, if
        there is one."""
        if lora := lora or self.newest_lora():
            self.write_lora(lora, "last")

    def newest_lora(self) -> Lora | None:
        """Returns the LoRA of the newest state whose LoRA can be read, or None if there is none."""
        for step in reversed(self.snapshots()):
            with contextlib.suppress(OSError, ValueError):
                return self.read_lora(step)
        return None

    def read_lora(self, which: Which | int) -> Lora | None:
        """Returns the job's last or best LoRA, or the LoRA of a step in `snapshots`; None if there is no such file."""
        path = self._loras[which] if isinstance(which, str) else self.states / f"step_{which:06}" / "lora.safetensors"
        return load(path) if path.exists() else None

    def snapshots(self) -> list[int]:
        """Returns the steps whose LoRA was kept with their state."""
        return sorted(int(p.parent.name.split("_")[1]) for p in self.states.glob("step_*/lora.safetensors"))


def _sample_name(step: int, index: int) -> str:
    return f"step_{step:06}_{index:02}.png"
