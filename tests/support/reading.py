"""Datasets for tests, read from a folder of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from livelora.trainer.data.item import Dataset
from livelora.trainer.data.pictures.augment import Augment
from livelora.trainer.data.scan import Cut, scan


def read(folder: Path, resolution: int = 64, trigger_word: str = "ohwx", *, more_resolutions: tuple[int, ...] = (),
         upscale: bool = True, augment: Augment | None = None, **options: Any) -> Dataset:
    """What LoRA Dataset Loader would hand on."""
    cut = Cut(resolution=resolution, more_resolutions=more_resolutions, upscale=upscale, augment=augment or Augment())
    return scan(folder, cut=cut, trigger_word=trigger_word,
                **{"scratch": folder.with_name(f"{folder.name}-scratch"), **options})
