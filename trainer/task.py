"""What a job is asked to do, and the first thing it does about it: turning pictures and captions into examples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from .config import TrainConfig
from .data import images, masks
from .data.captions import variants, with_class
from .data.dataset import Dataset, Item
from .host import Host, Interrupted, SampleSettings, Text
from .loop import Example
from .objective import generator

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

    def __post_init__(self) -> None:
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

    def fingerprint(self) -> str:
        """Equal for tasks that train the same LoRA: same base, recipe and data. Extending it changes nothing."""
        whole = [self.host.fingerprint(), self.config.identity(), self.dataset.fingerprint()]
        if self.regularization:
            whole.append(self.regularization.fingerprint())
        if self.start:
            whole.append([(name, hashlib.sha256(raw_bytes(self.start[name])).hexdigest())
                          for name in sorted(self.start)])
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def raw_bytes(tensor: Tensor) -> bytes:
    """What a tensor holds, in whatever type."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


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
        train, others, held_out = (d.items if d else () for d in (task.dataset, task.regularization, task.validation))
        prompts = (*task.preview.prompts, task.preview.negative) if task.preview else ()
        captions = [c for item in (*train, *others) for c in self._captions(item)] + [i.caption for i in held_out]
        preserved = [self._preserved(item) for item in train] if task.config.preservation_weight else []
        blank = [""] if task.config.caption_dropout else []
        texts = self._encode("captions", {c: c for c in (*captions, *preserved, *blank, *prompts)}, host.encode_text)
        pictures = {(i.digest, i.bucket): i.path for i in (*train, *others, *held_out)}
        latents = self._encode("images", {k: (p, k[1]) for k, p in pictures.items()},
                               lambda source: host.encode_image(images.load(*source)))
        examples = [self._example(item, latents[item.digest, item.bucket], texts) for item in (*train, *others)]
        learned = [self._learned(e, item, texts) for e, item in zip(examples, train, strict=False)]
        kept = [Example(latents[item.digest, item.bucket], [texts[item.caption]]) for item in held_out]
        return Prepared(learned + self._in_proportion(learned, examples[len(train):]), kept, texts)

    def _captions(self, item: Item) -> list[str]:
        """A caption in every order that is trained."""
        config = self._task.config
        return variants(item.caption, config.caption_shuffle, config.keep_tokens, config.caption_variants,
                        generator(config.seed, "variants", item.digest))

    def _preserved(self, item: Item) -> str:
        """The caption whose answer must not change."""
        task, word = self._task, self._task.config.preservation_class
        return with_class(item.caption, task.dataset.trigger_word, word) if word else ""

    def _example(self, item: Item, latents: Tensor, texts: dict[str, Text]) -> Example:
        mask = masks.to_latents(masks.load(item), (latents.shape[1], latents.shape[2])) if item.mask else None
        return Example(latents, [texts[c] for c in self._captions(item)], item.num_repeats, item.weight, mask,
                       blank=texts[""] if self._task.config.caption_dropout else None)

    def _learned(self, example: Example, item: Item, texts: dict[str, Text]) -> Example:
        """What sets an image to learn from, or to unlearn, apart from a regularization image."""
        config = self._task.config
        return replace(example, weight=-item.weight if config.erase else item.weight,
                       preserved=texts[self._preserved(item)] if config.preservation_weight else None)

    def _in_proportion(self, learned: list[Example], others: list[Example]) -> list[Example]:
        """Regularization images, as many as there are to learn from, repeats counted; each in turn."""
        if not others:
            return []
        rounds, rest = divmod(sum(e.num_repeats for e in learned), len(others))
        return [replace(e, num_repeats=rounds + (i < rest), weight=self._task.config.prior_weight * e.weight)
                for i, e in enumerate(others) if rounds + (i < rest)]

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
