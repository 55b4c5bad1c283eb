"""What a job is asked to do."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..data.cache import Cache
from ..data.captions.files import with_class
from ..data.item import Dataset
from ..model.host import Host, SampleSettings
from ..recipe.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture to draw."""

    prompt: str
    negative: str
    settings: SampleSettings


@dataclass(frozen=True, slots=True)
class Preview:
    """Pictures to draw while training."""

    samples: tuple[Sample, ...]
    every: int
    """Steps between rounds; there is one before the first step and one after the last."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Every prompt and negative prompt."""
        return tuple(text for sample in self.samples for text in (sample.prompt, sample.negative))


@dataclass(frozen=True, slots=True)
class Task:
    """A model, a recipe, data, and what to show on the way.

    Raises ValueError if the recipe asks for what the data does not have."""

    host: Host
    config: TrainConfig
    dataset: Dataset
    validation: Dataset | None = None
    """Held-out images; where there are none, `held_out` takes them from `dataset`."""
    preview: Preview | None = None
    regularization: Dataset | None = None
    """Images of the class, for prior preservation."""
    start: dict[str, Tensor] | None = None
    """A LoRA to go on from."""
    cache: Cache | None = None
    """Where encoded pictures and captions are kept for the next time."""

    def __post_init__(self) -> None:
        learned, others = self.dataset.without_regularization()
        if others:
            both = replace(others, items=others.items + (self.regularization.items if self.regularization else ()))
            object.__setattr__(self, "dataset", learned)
            object.__setattr__(self, "regularization", both)
        if problems := self._problems():
            raise ValueError("This cannot be trained:\n" + "\n".join(f"- {p}" for p in problems))
        if self.config.held_out:
            train, validation = self.dataset.split(self.config.held_out)
            object.__setattr__(self, "dataset", train)
            object.__setattr__(self, "validation", validation)

    def _problems(self) -> list[str]:
        """What the recipe asks for and the data does not have."""
        config, found = self.config, []
        if config.held_out and self.validation:
            found.append(f"held_out is {config.held_out:g}, and a validation dataset is wired in as well. Set held_out "
                         "to 0, or unlink the dataset.")
        if config.early_stop_patience and not (config.held_out or self.validation):
            found.append(f"early_stop_patience is {config.early_stop_patience}, but there are no held-out images to "
                         "measure. Set held_out to 0.1, or wire in a validation dataset.")
        if config.prior_weight != 1 and not self.regularization:
            found.append(f"prior_weight is {config.prior_weight:g}, but no regularization images are wired in. Wire "
                         "them in, or set it back to 1.")
        if config.unmasked_weight and not any(item.mask for item in self.dataset.items):
            found.append(f"unmasked_weight is {config.unmasked_weight:g}, but no image has a mask. Set masks to 'use' "
                         "in LoRA Dataset Loader, or unmasked_weight back to 0.")
        if config.preservation_class and not self.dataset.trigger_word:
            found.append(f"preservation_class ('{config.preservation_class}') replaces the trigger word, and the "
                         "dataset has none. Give it one in LoRA Dataset Loader, or empty preservation_class.")
        elif config.preservation_class:
            trigger = self.dataset.trigger_word
            without = [i.path.name for i in self.dataset.items if with_class(i.caption, trigger, "") == i.caption]
            if without:
                found.append(f"preservation_class ('{config.preservation_class}') replaces the trigger word "
                             f"'{trigger}', and {len(without)} captions do not have it, such as that of {without[0]}: "
                             "what they teach would be held back. Write it into them, or empty preservation_class.")
        return found

    def fingerprints(self) -> dict[str, str]:
        """Of each thing that makes it another training if it changes. Extending a training changes none."""
        parts = {"model": self.host.fingerprint(), "recipe": _digest(self.config.identity()),
                 "images and captions": self.dataset.fingerprint()}
        if self.regularization:
            parts["regularization images"] = self.regularization.fingerprint()
        if self.start:
            parts["LoRA that it starts from"] = _digest(
                [(name, hashlib.sha256(raw_bytes(self.start[name])).hexdigest()) for name in sorted(self.start)])
        return parts

    def fingerprint(self) -> str:
        """Equal for tasks that train the same LoRA: same base, recipe and data."""
        return fingerprint(self.fingerprints())

    def extended(self, config: TrainConfig) -> Task:
        """The same task with a longer recipe."""
        task = copy.copy(self)
        object.__setattr__(task, "config", config)
        return task


def fingerprint(parts: dict[str, str]) -> str:
    """One for all of a task's."""
    return _digest(parts)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def raw_bytes(tensor: Tensor) -> bytes:
    """What a tensor holds, in whatever type."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
