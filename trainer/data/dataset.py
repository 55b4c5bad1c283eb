"""A folder of images and captions, found, checked and ready to be encoded."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from . import captions, images
from .buckets import choose
from .find import NAMED, Found, find, name_some
from .masks import Masks, with_mask

OnBadImage = Literal["refuse", "skip"]
OnMissingCaption = Literal["refuse", "use the trigger word"]


@dataclass(frozen=True, slots=True)
class Item:
    """One image with its caption."""

    path: Path
    caption: str
    num_repeats: int
    size: tuple[int, int]
    """Upright width and height in pixels."""
    bucket: tuple[int, int]
    """The width and height it is trained at."""
    digest: str
    """SHA-256 of the file."""
    has_caption: bool = True
    """False if there was none and the trigger word stands in."""
    weight: float = 1.0
    """Factor on its loss."""
    mask: Path | None = None
    """A picture of what counts; the image itself if its alpha channel says so. None: all of it counts."""
    mask_digest: str = ""
    """SHA-256 of the mask's file."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """What the Dataset Loader found. Immutable: the Captioner makes a new one."""

    folder: Path
    resolution: int
    trigger_word: str
    items: tuple[Item, ...]
    skipped: tuple[str, ...] = ()
    """Why images were left out, a sentence each."""

    def fingerprint(self) -> str:
        """Equal for the same pixels, captions, repeats, buckets, masks and weights, wherever they lie."""
        content = [(i.digest, i.caption, i.num_repeats, i.bucket, *_rare(i)) for i in self.items]
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def with_captions(self, texts: list[str]) -> Dataset:
        """The same images with other captions."""
        items = (replace(i, caption=t, has_caption=True) for i, t in zip(self.items, texts, strict=True))
        return replace(self, items=tuple(items))

    def split(self, held_out: float) -> tuple[Dataset, Dataset | None]:
        """What is trained, and what is kept from training to be measured.

        `held_out` different pictures of each folder are kept; below 1, that share of them, at least one of two. Which,
        depends on their content alone, and identical ones stay together. Raises ValueError if a folder would have
        nothing left to train on, or if nothing would be kept."""
        if not held_out:
            return self, None
        if held_out > 1 and held_out % 1:
            raise ValueError(f"held_out must be a whole number of images or a fraction below 1, got {held_out}.")
        digests: dict[Path, set[str]] = {}
        for item in self.items:
            digests.setdefault(item.path.parent, set()).add(item.digest)
        chosen = {digest for those in digests.values() for digest in _choose(those, held_out)}
        empty = [f"'{folder}' (different images: {len(those)})" for folder, those in digests.items() if those <= chosen]
        if empty:
            raise ValueError(f"held_out {held_out:g} leaves nothing to train on in {', '.join(empty)}. Lower held_out, "
                             "or add images there.")
        if not chosen:
            raise ValueError(f"held_out {held_out:g} keeps none of the {len(self.items)} images in '{self.folder}': "
                             "no folder has two different ones. Set held_out to 0, or add images.")
        train, kept = (tuple(i for i in self.items if (i.digest in chosen) == held) for held in (False, True))
        return replace(self, items=train), replace(self, items=kept, skipped=())

    def report(self) -> str:
        """What was found, for a person."""
        total = sum(i.num_repeats for i in self.items)
        small = [i.path.name for i in self.items if i.size[0] < i.bucket[0] or i.size[1] < i.bucket[1]]
        repeated = f", {total} with repeats" if total > len(self.items) else ""
        lines = [f"{len(self.items)} images in {self.folder}{repeated}"]
        lines += [f"{count} × {width}×{height}" for (width, height), count in
                  sorted(Counter(i.bucket for i in self.items).items(), key=lambda entry: -entry[1])]
        if small:
            lines.append(f"{len(small)} smaller than their training size, enlarged: {name_some(small)}")
        masked, weighted = sum(i.mask is not None for i in self.items), sum(i.weight != 1 for i in self.items)
        if masked:
            lines.append(f"{masked} with masks")
        if weighted:
            lines.append(f"{weighted} with a weight of their own")
        lines += [f"Skipped: {reason}" for reason in self.skipped]
        lines += [f"“{i.caption}” ({i.path.name})" for i in self.items[:3]]
        return "\n".join(lines)


def _rare(item: Item) -> list[tuple[str, str | float]]:
    """What few images have. Jobs are found by their dataset's fingerprint, so it must not change for the others."""
    mask = [("mask", item.mask_digest)] if item.mask else []
    return [*mask, *([("weight", item.weight)] if item.weight != 1 else [])]


def _choose(digests: set[str], held_out: float) -> list[str]:
    """Those with the smallest digests, which are as good as drawn and the same in every run."""
    count = int(held_out)
    if held_out < 1:
        count = max(math.floor(held_out * len(digests) + 0.5), min(1, len(digests) - 1))
    return sorted(digests)[:count]


def scan(folder: Path, *, resolution: int, trigger_word: str, on_bad_image: OnBadImage = "refuse",
         on_missing_caption: OnMissingCaption = "refuse", masks: Masks = "ignore") -> Dataset:
    """Finds and checks every image of `folder` and of its `N_name` subfolders (kohya's repeats).

    Raises ValueError that names the files and says what to do: no such folder, no images, unreadable images, captions
    that are missing or not UTF-8, unusable masks or weights."""
    found, passed_over = find(folder)
    items, bad = [], []
    for entry in found:
        try:
            item = _read(entry, resolution, trigger_word)
            items.append(with_mask(item, entry.masks) if masks == "use" else item)
        except ValueError as err:
            bad.append(str(err))
    if bad and on_bad_image == "refuse":
        raise ValueError(f"{len(bad)} of {len(found)} images in '{folder}' cannot be used:\n" + "\n".join(bad[:NAMED])
                         + "\nMend them, or set bad_images to 'skip'.")
    if not items:
        raise ValueError(f"None of the {len(found)} images in '{folder}' can be used:\n" + "\n".join(bad[:NAMED]))
    if uncaptioned := [i.path.name for i in items if not i.has_caption]:
        _check_uncaptioned(folder, uncaptioned, len(items), trigger_word, on_missing_caption)
    if masks == "ignore" and (pictures := sorted({mask.name for entry in found for mask in entry.masks})):
        passed_over.append(f"{len(pictures)} mask pictures, because masks is 'ignore': {name_some(pictures)}")
    return Dataset(folder, resolution, trigger_word, tuple(items), (*bad, *passed_over))


def _read(found: Found, resolution: int, trigger_word: str) -> Item:
    caption, size = captions.read(found.path), images.measure(found.path)
    digest = hashlib.sha256(found.path.read_bytes()).hexdigest()
    return Item(found.path, caption or trigger_word, found.num_repeats, size, choose(size, resolution), digest,
                has_caption=bool(caption), weight=found.weight)


def _check_uncaptioned(folder: Path, names: list[str], total: int, trigger_word: str, rule: OnMissingCaption) -> None:
    problem = f"{len(names)} of {total} images in '{folder}' have no caption: {name_some(names)}."
    if rule == "refuse":
        raise ValueError(f"{problem} Write one text file for each image (cat.png → cat.txt), or set missing_captions "
                         "to 'use the trigger word'.")
    if not trigger_word:
        raise ValueError(f"{problem} They cannot be trained with the trigger word, because trigger_word is empty.")
