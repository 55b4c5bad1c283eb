"""A job's folder: everything it needs to go on after a crash.

`job.json` (what it is), `metrics.jsonl` (a line a step), `state/step_000500/`, `samples/`, and the LoRA: the last in
`lora.safetensors`, the one with the lowest held-out loss in `lora_best.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .export import Lora, load
from .files import replacing, write_atomic, write_json, write_tensors

Which = Literal["last", "best"]


class JobFolder:
    """Reads and writes one job's folder. Writing raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path, self.states = path, path / "state"
        self._samples, self._metrics = path / "samples", path / "metrics.jsonl"
        self._loras = {"last": path / "lora.safetensors", "best": path / "lora_best.safetensors"}

    def create(self) -> None:
        """Makes the folders."""
        self.states.mkdir(parents=True, exist_ok=True)
        self._samples.mkdir(exist_ok=True)

    def read_job(self) -> dict[str, Any] | None:
        """The content of `job.json`, None if it is not there or not readable."""
        try:
            return json.loads((self.path / "job.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write_job(self, facts: dict[str, Any]) -> None:
        """Replaces `job.json`."""
        write_json(self.path / "job.json", facts)

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of `metrics.jsonl`; a line cut short by a crash is left out."""
        try:
            lines = self._metrics.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                break
        return found

    def rewind_metrics(self, step: int) -> list[dict[str, Any]]:
        """Drops what was recorded after `step`, and gives the rest: it will be done again; from step 0 all of it."""
        kept = [m for m in self.metrics() if m["step"] <= step] if step else []
        write_atomic(self._metrics, "".join(json.dumps(m) + "\n" for m in kept).encode())
        return kept

    def append_metrics(self, facts: dict[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    def write_sample(self, step: int, index: int, image: Tensor, prompt: str) -> str:
        """Saves a picture (h, w, 3) in 0…1 as PNG with its prompt in it, and gives its file name."""
        name = f"step_{step:06}_{index:02}.png"
        about = PngInfo()
        about.add_itxt("livelora", json.dumps({"prompt": prompt, "step": step, "job": self.path.name}))
        pixels = (image.clamp(0, 1) * 255).round().byte().numpy().astype(np.uint8)
        with replacing(self._samples / name) as temporary:
            Image.fromarray(pixels).save(temporary, "PNG", pnginfo=about)
        return name

    def sample_path(self, name: str) -> Path | None:
        """The file of a sample by its name; None if there is no such sample."""
        return next((p for p in self._samples.glob("*.png") if p.name == name), None)

    def samples(self) -> list[str]:
        """Names of all samples, oldest first."""
        return sorted(p.name for p in self._samples.glob("step_*.png"))

    def newest_sample(self) -> Path | None:
        """The file of the newest picture of the first prompt."""
        return max(self._samples.glob("step_*_00.png"), default=None)

    def write_lora(self, lora: Lora, which: Which) -> None:
        """Replaces the job's last or best LoRA file."""
        write_tensors(self._loras[which], dict(lora), lora.metadata)

    def read_lora(self, which: Which) -> Lora | None:
        """The job's last or best LoRA, None if it has written none yet."""
        path = self._loras[which]
        return load(path) if path.exists() else None
