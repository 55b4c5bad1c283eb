"""A folder of images and captions, found, checked and ready to be encoded."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from . import captions, images
from .buckets import choose

OnBadImage = Literal["refuse", "skip"]
OnMissingCaption = Literal["refuse", "use the trigger word"]
NAMED = 5
"""How many files a message names."""


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
        """Equal for the same pixels, captions, repeats and buckets, wherever they lie."""
        content = [(i.digest, i.caption, i.num_repeats, i.bucket) for i in self.items]
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def with_captions(self, texts: list[str]) -> Dataset:
        """The same images with other captions."""
        items = (replace(i, caption=t, has_caption=True) for i, t in zip(self.items, texts, strict=True))
        return replace(self, items=tuple(items))

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
        lines += [f"Skipped: {reason}" for reason in self.skipped]
        lines += [f"“{i.caption}” ({i.path.name})" for i in self.items[:3]]
        return "\n".join(lines)


def name_some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def scan(folder: Path, *, resolution: int, trigger_word: str, on_bad_image: OnBadImage = "refuse",
         on_missing_caption: OnMissingCaption = "refuse") -> Dataset:
    """Finds and checks every image of `folder` and of its `N_name` subfolders (kohya's repeats).

    Raises ValueError that names the files and says what to do: no such folder, no images, unreadable images, captions
    that are missing or not UTF-8."""
    found, unread = find(folder)
    items, bad, uncaptioned = [], [], []
    for path, num_repeats in found:
        try:
            caption, size = captions.read(path), images.measure(path)
        except ValueError as err:
            bad.append(str(err))
            continue
        if not caption:
            uncaptioned.append(path.name)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        bucket = choose(size, resolution)
        items.append(Item(path, caption or trigger_word, num_repeats, size, bucket, digest, has_caption=bool(caption)))
    if bad and on_bad_image == "refuse":
        raise ValueError(f"{len(bad)} of {len(found)} images in '{folder}' cannot be used:\n" + "\n".join(bad[:NAMED])
                         + "\nMend them, or set bad_images to 'skip'.")
    if not items:
        raise ValueError(f"None of the {len(found)} images in '{folder}' can be used:\n" + "\n".join(bad[:NAMED]))
    if uncaptioned:
        _check_uncaptioned(folder, uncaptioned, len(items), trigger_word, on_missing_caption)
    return Dataset(folder, resolution, trigger_word, tuple(items), (*bad, *unread))


def _check_uncaptioned(folder: Path, names: list[str], total: int, trigger_word: str, rule: OnMissingCaption) -> None:
    problem = f"{len(names)} of {total} images in '{folder}' have no caption: {name_some(names)}."
    if rule == "refuse":
        raise ValueError(f"{problem} Write one text file for each image (cat.png → cat.txt), or set missing_captions "
                         "to 'use the trigger word'.")
    if not trigger_word:
        raise ValueError(f"{problem} They cannot be trained with the trigger word, because trigger_word is empty.")


def find(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    """Images with their repeats, by name, and what was passed over. Raises ValueError if there are none."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"The dataset folder '{folder}' {what}. Choose a folder with .png, .jpg or .webp files.")
    places, unread = [(folder, 1)], []
    for sub in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if match := re.match(r"(\d+)_", sub.name):
            places.append((sub, int(match[1])))
        else:
            unread.append(f"folder '{sub.name}': only subfolders named like 10_name (number of repeats, name) are "
                          "read.")
    found = [(p, n) for place, n in places if n > 0
             for p in sorted(place.iterdir()) if p.suffix.lower() in images.EXTENSIONS and p.is_file()]
    if not found:
        others = sorted(p.name for p in folder.iterdir())
        listed = f"(0 of {len(others)} entries are images: {name_some(others)})" if others else "(it is empty)"
        raise ValueError(f"No images in '{folder}' {listed}. Choose a folder with .png, .jpg or .webp files.")
    return found, unread
