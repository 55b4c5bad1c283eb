"""Held-out loss: images the LoRA never trains on, at fixed noise levels with fixed noise, so that only the LoRA
changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .loop import Example, Trainer
from .objective import generator

SIGMAS = (0.1, 0.25, 0.5, 0.75, 0.9)
BATCH = 8


class HeldOut:
    """A held-out set, measured a batch at a time. With an untrained LoRA its loss is the base model's."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples
        groups: dict[tuple, list[int]] = {}
        for index, example in enumerate(examples):
            groups.setdefault(tuple(example.latents.shape), []).append(index)
        self.batches = [group[i:i + BATCH] for group in groups.values() for i in range(0, len(group), BATCH)]

    @torch.no_grad()
    def losses(self, trainer: Trainer, batch: list[int]) -> list[float]:
        """The loss of each image of a batch at each of `SIGMAS`."""
        latents = torch.stack([self._examples[i].latents for i in batch])
        texts, found = [self._examples[i].text for i in batch], []
        for sigma in SIGMAS:
            noise = torch.stack([torch.randn(latents.shape[1:], generator=generator(0, "held-out", i, str(sigma)))
                                 for i in batch])
            found += trainer.losses(latents, noise, torch.full((len(batch),), sigma), texts).tolist()
        return found
