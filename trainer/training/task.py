"""Describes what a job is asked to do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..data.cache import Cache
from ..data.captions.files import with_class
from ..data.item import Dataset
from ..disk.text import counted
from ..model.host import Host, SampleSettings
from ..model.memory import Plan
from ..recipe.config import TrainConfig
from .planning import plan_before
from .targets import check_adapter, family_problems
from .texts import caption_problems, length_problems


@dataclass(frozen=True, slots=True)
class Sample:
    """Describes a picture to draw."""

    prompt: str
    """What to draw; `{trigger}` stands for the dataset's trigger word."""
    negative: str
    settings: SampleSettings

    def about(self, trigger_word: str) -> Sample:
        """Returns the picture with the trigger word in its prompts."""
        return replace(self, prompt=_filled(self.prompt, trigger_word), negative=_filled(self.negative, trigger_word))


@dataclass(frozen=True, slots=True)
class Preview:
    """Describes the pictures to draw while training."""

    samples: tuple[Sample, ...]
    every: int
    """Steps between two rounds of pictures. There is also a round before the first step and one after the last."""

    def about(self, trigger_word: str) -> Preview:
        """Returns the preview with the trigger word in its prompts."""
        return replace(self, samples=tuple(sample.about(trigger_word) for sample in self.samples))

    @property
    def texts(self) -> tuple[str, ...]:
        """Returns every prompt and negative prompt."""
        return tuple(text for sample in self.samples for text in (sample.prompt, sample.negative))


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Holds a model, a recipe, data, and what to show on the way. `Task.of` makes one."""

    host: Host
    config: TrainConfig
    dataset: Dataset
    """The images that are learned."""
    validation: Dataset | None = None
    """The images that are kept from training and measured."""
    preview: Preview | None = None
    regularization: Dataset | None = None
    """Images of the class, for prior preservation."""
    start: dict[str, Tensor] | None = None
    """The LoRA that training starts from."""
    plan: Plan | None = None
    """How its memory will be used, as far as that is known before anything is encoded."""
    cache: Cache | None = None
    """The cache that keeps encoded pictures and captions for the next time."""

    @classmethod
    def of(cls, host: Host, config: TrainConfig, dataset: Dataset, *, validation: Dataset | None = None,
           regularization: Dataset | None = None, start: dict[str, Tensor] | None = None,
           preview: Preview | None = None, **others: Any) -> Task:
        """Makes a task. The images of the class, and those that the recipe holds out, are taken out of `dataset`.

        Raises ValueError if the recipe asks for what the model or the data does not have, if `start` does not fit, or
        if the training does not fit the memory. Nothing is loaded or encoded for that."""
        wired = regularization
        preview = preview and preview.about(dataset.trigger_word)
        learned, of_class = dataset.without_regularization()
        if of_class:
            more = regularization.items if regularization else ()
            regularization = replace(of_class, items=of_class.items + more)
        problems = [*caption_problems((dataset, validation, wired)), *family_problems(config, host.family),
                    *_problems(config, learned, validation, regularization),
                    *length_problems(host, config, (learned, regularization, validation),
                                     preview.texts if preview else ())]
        if problems:
            raise ValueError("This cannot be trained:\n" + "\n".join(f"- {p}" for p in problems))
        check_adapter(host.view(torch.float32), config, host.family, start)
        plan = plan_before(host, config, [*learned.items, *(regularization.items if regularization else ())], start)
        if config.held_out:
            learned, validation = learned.split(config.held_out)
        return cls(host=host, config=config, dataset=learned, validation=validation, regularization=regularization,
                   start=start, preview=preview, plan=plan, **others)

    def fingerprints(self) -> dict[str, str]:
        """Returns a fingerprint of each thing that makes this another training if it changes. Extending a training
        changes none."""
        parts = {"model": self.host.fingerprint(), "recipe": _digest(self.config.identity()),
                 "images and captions": self.dataset.fingerprint()}
        kept = [item.digest for item in self.dataset.items if item.rules and item.rules.caption_dropout_rate == 0]
        if kept and self.config.caption_dropout:  # the images' fingerprint takes 0 for what the recipe says
            parts["captions that are never left out"] = _digest(kept)
        if self.regularization:
            parts["regularization images"] = self.regularization.fingerprint()
        if self.start:
            parts["LoRA that it starts from"] = _digest(
                [(name, hashlib.sha256(raw_bytes(self.start[name])).hexdigest()) for name in sorted(self.start)])
        return parts

    def fingerprint(self) -> str:
        """Returns a text that is equal for tasks that train the same LoRA: with the same base, recipe and data."""
        return fingerprint(self.fingerprints())

    def extended(self, config: TrainConfig) -> Task:
        """Returns the same task with a longer recipe."""
        return replace(self, config=config)


def _problems(config: TrainConfig, dataset: Dataset, validation: Dataset | None,
              regularization: Dataset | None) -> Iterator[str]:
    """Yields a sentence for each thing that the recipe asks for and the data does not have."""
    if config.held_out and validation:
        yield (f"held_out is {config.held_out:g}, and a validation dataset is wired in as well. Set held_out to 0, or "
               "unlink the dataset.")
    if config.early_stop_patience and not (config.held_out or validation):
        yield (f"early_stop_patience is {config.early_stop_patience}, but there are no held-out images to measure. Set "
               "held_out to 0.1, or wire in a validation dataset.")
    if config.prior_weight != 1 and not regularization:
        yield (f"prior_weight is {config.prior_weight:g}, but no regularization images are wired in. Wire them in, or "
               "set it back to 1.")
    if config.unmasked_weight and not any(item.mask for item in dataset.items):
        yield (f"unmasked_weight is {config.unmasked_weight:g}, but no image has a mask. Set masks to 'use' in LoRA "
               "Dataset Loader, or unmasked_weight back to 0.")
    word, trigger = config.preservation_class, dataset.trigger_word
    if word and not trigger:
        yield (f"preservation_class ('{word}') replaces the trigger word, and the dataset has none. Give it one in "
               "LoRA Dataset Loader, or empty preservation_class.")
    elif word and (without := [i.path.name for i in dataset.items if with_class(i.caption, trigger, "") == i.caption]):
        yield (f"preservation_class ('{word}') replaces the trigger word '{trigger}', and "
               f"{counted(len(without), 'caption')} without it would be held back, such as that of {without[0]}. Write "
               "it into each, or "
               "empty preservation_class.")


def _filled(prompt: str, trigger_word: str) -> str:
    if "{trigger}" not in prompt:
        return prompt
    return prompt.replace("{trigger}", trigger_word).strip(" ,")


def fingerprint(parts: dict[str, str]) -> str:
    """Returns one fingerprint for all fingerprints of a task."""
    return _digest(parts)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def raw_bytes(tensor: Tensor) -> bytes:
    """Returns the bytes of a tensor of any type."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
