"""Turns pictures and captions into what the transformer takes. This is the first thing that a job does.

Shapes: B images, C latent channels, H W latent rows and columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..data.cache import key
from ..data.captions import rules as caption_rules
from ..data.captions.files import variants, with_class
from ..data.item import Item
from ..data.pictures import images, masks
from ..data.pictures.augment import View, views
from ..model.host import Interrupted, Text
from ..model.shortage import once_more
from ..recipe.seeds import generator
from .example import Example
from .task import Task

Encoded = TypeVar("Encoded")
Caption = str | Path
"""A caption: its text, or the file of a text that a person encoded."""
AT_ONCE = 4
"""The largest number of pictures, all of one size, that are encoded together."""


@dataclass(frozen=True, slots=True)
class Shown:
    """Says which picture is encoded, and in which size and view."""

    digest: str
    path: Path
    bucket: tuple[int, int] | None
    """The width and height, in pixels, in which the picture is encoded. None: the file holds latents that a person
    encoded."""
    view: View


@dataclass(frozen=True, slots=True)
class Prepared:
    """Holds a task's data as the transformer takes it."""

    train: list[Example]
    held_out: list[Example]
    texts: Mapping[str | Path, Text]
    """Every caption and prompt with its encoded text."""


class Preparation:
    """Encodes a task's captions and pictures, each once and each under a lease of its own, so that prompts can run in
    between and CLIP and VAE are free to leave the device before training starts."""

    def __init__(self, task: Task, hold: Callable[[], AbstractContextManager[Any]], tell: Callable[[str], None],
                 on_interrupt: Callable[[Interrupted], None]) -> None:
        """`tell` hears before each item what is being done, and may raise to end the work. `on_interrupt` raises if the
        person meant this work; if it returns, the item that was cut short is encoded again."""
        self._task, self._hold, self._tell, self._on_interrupt = task, hold, tell, on_interrupt

    def run(self) -> Prepared:
        """Encodes everything and returns it. Raises what `tell` and `on_interrupt` raise, and ValueError if what a
        person encoded does not fit the model."""
        task = self._task
        train, others, held_out = (d.items if d else () for d in (task.dataset, task.regularization, task.validation))
        prompts = task.preview.texts if task.preview else ()
        captions = [c for item in (*train, *others) for c in self._captions(item)]
        captions += [self._captions(item)[0] for item in held_out]
        preserved = [self._preserved(item) for item in train] if task.config.preservation_weight else []
        blank = [""] if any(self._dropout(item) for item in (*train, *others)) else []
        pictures = [*(shown for item in (*train, *others) for shown in self._shown(item)),
                    *(self._shown(item)[0] for item in held_out)]
        # What a person encoded comes first: if it does not fit, that is known before an encoder is loaded.
        latents = self._encode_pictures([shown for shown in pictures if not shown.bucket])
        wanted = sorted(dict.fromkeys((*captions, *preserved, *blank, *prompts)), key=lambda c: isinstance(c, str))
        texts = self._encode_texts(wanted)
        latents |= self._encode_pictures([shown for shown in pictures if shown.bucket])
        examples = [self._example(item, latents, texts) for item in (*train, *others)]
        learned = [self._learned(e, item, texts) for e, item in zip(examples, train, strict=False)]
        kept = [Example(latents[self._shown(item)[0]], [texts[self._captions(item)[0]]]) for item in held_out]
        if task.cache:
            task.cache.trim()
        return Prepared(learned + self._in_proportion(learned, examples[len(train):]), kept, texts)

    # What an image is to the trainer

    def _captions(self, item: Item) -> list[Caption]:
        """Returns every form of an image's caption that is trained, the plainest first."""
        config = self._task.config
        if item.text:
            return [item.text]
        draw = generator(config.seed, "variants", item.digest)
        if item.rules:
            return [*caption_rules.variants(item.caption, item.rules, config.caption_variants, draw)]
        return [*variants(item.caption, config.caption_shuffle, config.keep_tokens, config.caption_variants, draw)]

    def _dropout(self, item: Item) -> float:
        """Returns how often an image's caption is left out, in 0…1. What the dataset says overrides the recipe."""
        own = item.rules.caption_dropout_rate if item.rules else None
        return self._task.config.caption_dropout if own is None else own

    def _preserved(self, item: Item) -> Caption:
        """Returns the caption to which the model's answer must not change."""
        task, word, caption = self._task, self._task.config.preservation_class, self._captions(item)[0]
        return with_class(caption, task.dataset.trigger_word, word) if word and isinstance(caption, str) else ""

    def _shown(self, item: Item) -> list[Shown]:
        """Returns every view of an image that is trained, the plainest first."""
        if item.latents:
            return [Shown(item.digest, item.latents, None, View())]
        return [Shown(item.digest, item.path, item.bucket, view) for view in views(item.augment, item.digest)]

    def _example(self, item: Item, latents: dict[Shown, Tensor], texts: dict[Caption, Text]) -> Example:
        seen = [(latents[shown], self._mask(item, shown.view, latents[shown])) for shown in self._shown(item)]
        first, *others = [(picture, mask) for picture, mask in seen if mask is None or mask.any()]
        dropout = self._dropout(item)
        return Example(first[0], [texts[c] for c in self._captions(item)], item.num_repeats, item.weight, first[1],
                       others=others, caption_dropout=dropout, blank=texts[""] if dropout else None)

    def _mask(self, item: Item, view: View, latents: Tensor) -> Tensor | None:
        return masks.to_latents(item.load_mask(view), (latents.shape[1], latents.shape[2])) if item.mask else None

    def _learned(self, example: Example, item: Item, texts: dict[Caption, Text]) -> Example:
        """Returns the example with what only images to learn or unlearn have: a sign of the weight and a preserved
        caption."""
        config = self._task.config
        return replace(example, weight=-item.weight if config.erase else item.weight,
                       preserved=texts[self._preserved(item)] if config.preservation_weight else None)

    def _in_proportion(self, learned: list[Example], others: list[Example]) -> list[Example]:
        """Returns as many regularization images as there are images to learn from, counting repeats. As in sd-scripts,
        each image first comes as often as its own repeats say, then they come in turn."""
        left, repeats = sum(e.num_repeats for e in learned), []
        for example in others:
            repeats.append(example.num_repeats if left > 0 else 0)
            left -= repeats[-1]
        rounds, rest = divmod(max(left, 0), max(len(others), 1))
        repeats = [count + rounds + (i < rest) for i, count in enumerate(repeats)]
        return [replace(e, num_repeats=count, weight=self._task.config.prior_weight * e.weight)
                for e, count in zip(others, repeats, strict=True) if count]

    # Encoding

    def _encode_texts(self, captions: list[Caption]) -> dict[Caption, Text]:
        """Encodes captions. What the cache has is mapped only when all are encoded: a mapping made before that would
        lie in the memory that was just freed, and the next encoding would no longer fit there."""
        found: dict[Caption, Text | str] = {}
        for caption in captions:
            self._tell(f"Encoding captions: {len(found) + 1} of {len(captions)}")
            found[caption] = self._text(caption)
        return {caption: self._mapped(caption, text) if isinstance(text, str) else text
                for caption, text in found.items()}

    def _text(self, caption: Caption) -> Text | str:
        """Encodes a caption. Returns its key if the cache has it then, otherwise the encoded text."""
        host, cache = self._task.host, self._task.cache
        if isinstance(caption, Path):
            return host.given_text(load_file(caption))
        encoder = host.text_fingerprint(caption) if cache else ""
        if not (cache and encoder):
            return self._patiently(lambda: host.encode_text(caption))
        name = key("text", caption, encoder)
        if cache.get(name) is None:
            text = self._patiently(lambda: host.encode_text(caption))
            if cache.keep(name, text) is text:
                return text
        return name

    def _mapped(self, caption: Caption, name: str) -> Text:
        assert self._task.cache and isinstance(caption, str)
        # Somebody may have emptied the cache meanwhile.
        return self._task.cache.get(name) or self._patiently(lambda: self._task.host.encode_text(caption))

    def _encode_pictures(self, pictures: list[Shown]) -> dict[Shown, Tensor]:
        """Encodes pictures. The batches depend on the task alone, not on what the cache has, because rounding may
        differ by batch."""
        pictures, sizes, latents = list(dict.fromkeys(pictures)), {}, {}
        for shown in pictures:
            sizes.setdefault(shown.bucket, []).append(shown)
        batches = [group[i:i + AT_ONCE] for group in sizes.values() for i in range(0, len(group), AT_ONCE)]
        for batch in batches:
            self._tell(f"Encoding images: {len(latents) + 1} of {len(pictures)}")
            latents |= zip(batch, self._latents(batch), strict=True)
        return latents

    def _latents(self, batch: list[Shown]) -> list[Tensor]:
        host, cache = self._task.host, self._task.cache
        if not batch[0].bucket:
            return [host.given_latents(load_file(shown.path)["latents"]) for shown in batch]
        keys = [key("latents", s.digest, s.bucket, s.view, host.image_fingerprint()) for s in batch] if cache else []
        known = [cache.get(k) for k in keys] if cache else [None]
        if all(known):
            return [found["latents"] for found in known if found]
        pixels = torch.stack([images.load(s.path, s.bucket, s.view) for s in batch if s.bucket])
        encoded = list(self._patiently(lambda: host.encode_images(pixels)))
        if cache:  # what it has stays: Windows does not replace a file that is mapped
            encoded = [found["latents"] if found else cache.keep(k, {"latents": new})["latents"]
                       for k, found, new in zip(keys, known, encoded, strict=True)]
        return encoded

    def _patiently(self, encode: Callable[[], Encoded]) -> Encoded:
        """Encodes under a lease of its own, and does so again if a person interrupted somebody else's prompt, or with
        the device to itself if memory runs out."""
        while True:
            try:
                with self._hold():
                    return once_more(encode, self._task.host.clear)
            except Interrupted as err:
                self._on_interrupt(err)
