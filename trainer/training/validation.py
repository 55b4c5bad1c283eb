"""Measures the held-out loss: on images that the LoRA never trains on, at fixed noise levels with fixed noise, so that
only the LoRA changes."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..lora.inject import disabled
from ..recipe.seeds import generator
from .example import Example
from .trainer import Trainer

SIGMAS = (0.1, 0.25, 0.5, 0.75, 0.9)
WORSE = 0.02
"""The share by which the held-out loss must rise above its best to be called a rise."""


Part = tuple[list[int], float]
"""The indices of images that are measured together, and their noise level."""


class HeldOut:
    """Measures a held-out set one part at a time, which takes less time and memory than a training step of as many
    images. With an untrained LoRA its loss is the base model's."""

    def __init__(self, examples: Sequence[Example], batch_size: int) -> None:
        self._examples = examples
        groups: dict[tuple, list[int]] = {}
        for index, example in enumerate(examples):
            groups.setdefault(tuple(example.latents.shape), []).append(index)
        batches = [group[i:i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]
        self.parts: list[Part] = [(batch, sigma) for batch in batches for sigma in SIGMAS]

    def losses(self, trainer: Trainer, part: Part, *, base: bool = False) -> list[float]:
        """Returns the mean squared error of each image of a part; with `base`, without the adapter."""
        batch, sigma = part
        latents = torch.stack([self._examples[i].latents for i in batch])
        texts = [self._examples[i].texts[0] for i in batch]
        noise = torch.stack([torch.randn(latents.shape[1:], generator=generator(0, "held-out", i, str(sigma)))
                             for i in batch])
        with disabled(trainer.view) if base else contextlib.nullcontext():
            return trainer.errors(latents, noise, torch.full((len(batch),), sigma), texts).tolist()


@dataclass
class Curve:
    """Holds the held-out losses by step, and finds out what they say."""

    base: float | None = None
    """The held-out loss without the adapter."""
    points: list[tuple[int, float]] = field(default_factory=list)

    @property
    def best(self) -> tuple[int, float] | None:
        """Returns the step and loss of the best measurement, or None. The untrained start does not count."""
        return min((p for p in self.points if p[0]), key=lambda p: p[1], default=None)

    @property
    def since_best(self) -> int:
        """Returns how many measurements were made after the best one."""
        best = self.best
        return sum(step > best[0] for step, _ in self.points) if best else 0

    def overfitting(self, losses: Sequence[float]) -> str:
        """Returns a sentence if the held-out loss has turned while the training loss still falls; otherwise an empty
        text. `losses` holds the training loss of every step."""
        best = self.best
        if not best or self.since_best < 2:
            return ""
        (step, lowest), last = best, self.points[-1][1]
        early, late = losses[:step], losses[step:]
        if last < (1 + WORSE) * lowest or not late or statistics.fmean(late) >= statistics.fmean(early):
            return ""
        fell = f"{statistics.fmean(early):.3f} to {statistics.fmean(late):.3f}"
        return (f"Overfitting: since step {step} the held-out loss has risen from {lowest:.3f} to {last:.3f}, while "
                f"the training loss fell from {fell} on average. The LoRA of step {step} is kept as well: set result "
                f"to 'best'. Next time train about {step} steps, use a lower rank or learning rate, or more images.")
