"""What a job is asked to do, and the first thing it does about it: turning pictures and captions into examples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from .config import TrainConfig
from .data import images
from .data.dataset import Dataset
from .host import Host, Interrupted, SampleSettings, Text
from .loop import Example

Source = TypeVar("Source")
Encoded = TypeVar("Encoded")


@dataclass(frozen=True, slots=True)
class Preview:
    """Pictures to draw while training."""

    prompts: tuple[str, ...]
    negative: str
    every: int
    """Steps between rounds; there is one before the first step and one after the last."""
    settings: SampleSettings


@dataclass(frozen=True, slots=True)
class Task:
    """A model, a recipe, data, and what to show on the way."""

    host: Host
    config: TrainConfig
    dataset: Dataset
    validation: Dataset | None = None
    preview: Preview | None = None

    def fingerprint(self) -> str:
        """Equal for tasks that train the same LoRA: same base, recipe and data."""
        whole = (self.host.fingerprint(), self.config.as_dict(), self.dataset.fingerprint())
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A task's data as the transformer takes it."""

    train: list[Example]
    held_out: list[Example]
    texts: dict[str, Text]
    """Every caption and prompt."""


class Preparation:
    """Encodes a task's captions and pictures, each once and each under a lease of its own, so that prompts can run in
    between and CLIP and VAE are free to leave the device before training starts."""

    def __init__(self, task: Task, hold: Callable[[], AbstractContextManager[Any]], tell: Callable[[str], None],
                 on_interrupt: Callable[[Interrupted], None]) -> None:
        """`tell` hears what is being done before each item and may raise to end the work. `on_interrupt` raises if the
        person meant us; if it returns, the item that was cut short is encoded again."""
        self._task, self._hold, self._tell, self._on_interrupt = task, hold, tell, on_interrupt

    def run(self) -> Prepared:
        """All of it. Raises what `tell` and `on_interrupt` raise."""
        task, host = self._task, self._task.host
        sets = [task.dataset, *([task.validation] if task.validation else [])]
        items = [item for dataset in sets for item in dataset.items]
        prompts = (*task.preview.prompts, task.preview.negative) if task.preview else ()
        pictures = {(i.digest, i.bucket): i.path for i in items}
        texts = self._encode("captions", {c: c for c in (*(i.caption for i in items), *prompts)}, host.encode_text)
        latents = self._encode("images", {k: (p, k[1]) for k, p in pictures.items()},
                               lambda source: host.encode_image(images.load(*source)))
        train, *held_out = ([Example(latents[i.digest, i.bucket], texts[i.caption], i.num_repeats) for i in d.items]
                            for d in sets)
        return Prepared(train, held_out[0] if held_out else [], texts)

    def _encode(self, what: str, sources: dict[Any, Source], encode: Callable[[Source], Encoded]) -> dict[Any, Encoded]:
        encoded: dict[Any, Encoded] = {}
        for key, source in sources.items():
            while key not in encoded:
                self._tell(f"Encoding {what}: {len(encoded) + 1} of {len(sources)}")
                try:
                    with self._hold():
                        encoded[key] = encode(source)
                except Interrupted as err:
                    self._on_interrupt(err)
        return encoded
