"""Defines a dataset and its items: images and captions, ready to be encoded."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..disk.text import counted
from .captions.rules import CaptionRules
from .naming import name_some
from .pictures import images, masks
from .pictures.augment import Augment, View, views
from .pictures.index import Question
from .pictures.pixels import to_tensor

OnMissingCaption = Literal["refuse", "use the trigger word"]
"""What LoRA Train does with an image that has no caption."""


@dataclass(frozen=True, slots=True)
class Item:
    """Holds one image with its caption, and says how both are trained."""

    path: Path
    caption: str
    num_repeats: int
    size: tuple[int, int]
    """The width and height in pixels, turned upright."""
    bucket: tuple[int, int]
    """The width and height in pixels that it is trained at."""
    digest: str
    """SHA-256 of the file."""
    has_caption: bool = True
    """False if it has no caption and the trigger word stands in."""
    weight: float = 1.0
    """The factor on its loss."""
    mask: Path | None = None
    """A picture that shows what counts, or the image itself if its alpha channel shows it. None: all of it counts."""
    mask_digest: str = ""
    """SHA-256 of the mask's file."""
    rules: CaptionRules | None = None
    """What is done with its caption each time it is trained. None: what the recipe says."""
    augment: Augment = Augment()
    regularization: bool = False
    """Whether it is an image of the class, learned beside the others so that the class stays as it is."""
    latents: Path | None = None
    """A file with its latents, which a person encoded. `path` is then this file too."""
    text: Path | None = None
    """A file with its caption, which a person encoded."""
    perceptual_hash: int | None = None
    """64 bits that are alike for pictures that look alike. None: not a picture."""
    sharpness: float | None = None
    """The sharpness as `images.sharpness` measures it, low for a blurred picture. None: not a picture."""

    caption_file: Path | None = None
    """The text file that its caption is read from, or that is to be written. None: its caption is in a table, or came
    from other nodes."""

    @property
    def own_caption(self) -> str:
        """Returns its caption, or an empty text where the trigger word stands in."""
        return self.caption if self.has_caption else ""

    def captioned(self, text: str, trigger_word: str) -> Item:
        """Returns the item with another caption. If that is empty, the trigger word stands in."""
        return replace(self, caption=text or trigger_word, has_caption=bool(text))

    def with_mask(self, pictures: Sequence[Path], transparent: bool) -> Item:
        """Returns the item with the first of `pictures` as its mask, or else with its alpha channel if any pixel is
        `transparent`. It is unchanged if it has neither. The mask is not looked at."""
        mask = pictures[0] if pictures else self.path if transparent else None
        return replace(self, mask=mask) if mask else self

    def ask_mask(self) -> Question[masks.Facts]:
        """Returns the question whether its mask can be used."""
        about = repr((self.mask == self.path, self.size, self.bucket, self.augment, self.digest))
        return Question(self.mask or self.path, self._examine_mask, hashlib.sha256(about.encode()).hexdigest()[:16])

    def _examine_mask(self) -> masks.Facts:
        """Returns what is known of its mask. Raises ValueError if the mask cannot be read, differs from its image in
        size, or leaves out all that is trained."""
        assert self.mask
        data = images.read(self.mask)
        grey = masks.grey(self.mask, data, alpha=self.mask == self.path)
        if grey.size != self.size:
            raise ValueError(f"{self.mask.name} is {grey.size[0]}×{grey.size[1]} pixels and its image {self.path.name} "
                             f"{self.size[0]}×{self.size[1]}. Save the mask at the size of its image.")
        if not any(masks.cut(grey, self.bucket, view).getbbox() for view in views(self.augment, self.digest)):
            left_out, counts = ("transparent", "opaque") if self.mask == self.path else ("black", "white")
            raise ValueError(f"{self.mask.name} is {left_out} in the whole part of {self.path.name} that is trained "
                             f"({self.bucket[0]}×{self.bucket[1]} around the centre), so nothing counts. Make some of "
                             f"it {counts}.")
        return masks.Facts(hashlib.sha256(data).hexdigest())

    def load_mask(self, view: View = View()) -> Tensor:  # noqa: B008 - it is immutable
        """Returns its mask (h, w) in 0…1, cut exactly as `images.load` cuts the image. It must have a mask."""
        assert self.mask
        grey = masks.grey(self.mask, images.read(self.mask), alpha=self.mask == self.path)
        return to_tensor(masks.cut(grey, self.bucket, view))


@dataclass(frozen=True, slots=True)
class Dataset:
    """Holds what the Dataset Loader found. It is immutable: the Captioner makes a new one."""

    folder: Path
    resolution: int
    trigger_word: str
    items: tuple[Item, ...]
    skipped: tuple[str, ...] = ()
    """Why images were left out, a sentence each."""
    on_missing_caption: OnMissingCaption = "refuse"
    how_to_caption: str = "Write captions for them"
    """How a person gives captions to images that have none: the beginning of a sentence."""

    @property
    def takes_uncaptioned(self) -> bool:
        """Returns whether images without a caption can be trained, with the trigger word alone."""
        return self.on_missing_caption == "use the trigger word" and bool(self.trigger_word)

    @property
    def uncaptioned(self) -> list[Item]:
        """Returns the images that have no caption, each once."""
        return list({item.path: item for item in self.items if not item.has_caption}.values())

    @property
    def caption_choices(self) -> str:
        """Returns a sentence with everything that a person can do about images that have no caption."""
        alone = ["set missing_captions to 'use the trigger word'"] if self.on_missing_caption == "refuse" else []
        alone += [] if self.trigger_word else ["fill in trigger_word"]
        return f"{self.how_to_caption}, let LoRA Captioner write them, or {' and '.join(alone)}."

    def fingerprint(self) -> str:
        """Returns a hash that is equal for the same pixels, captions, repeats, buckets, masks and weights, wherever
        the files lie."""
        content = [(i.digest, i.caption, i.num_repeats, i.bucket, *_rare(i)) for i in self.items]
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def names(self) -> dict[Path, str]:
        """Returns the name of each picture by its path. A name such as `10_cat/a.png` begins below the dataset's
        folder. If that does not hold all pictures (an archive, a configuration), it begins below the folder that does.
        If there is no such folder, the name is the whole path."""
        paths = dict.fromkeys(item.path for item in self.items)
        home = _home(self.folder, list(paths))
        return {path: (path.relative_to(home) if home else path).as_posix() for path in paths}

    def without_regularization(self) -> tuple[Dataset, Dataset | None]:
        """Returns the dataset that is to be learned, and the one with the images of the class, or None if there are no
        such images. Raises ValueError if there is nothing to learn."""
        learned, others = (tuple(i for i in self.items if i.regularization == wanted) for wanted in (False, True))
        if not learned:
            raise ValueError(f"There are only regularization images (is_reg) in '{self.folder}', {len(others)} in all. "
                             "Add the images of what the LoRA is to learn.")
        return replace(self, items=learned), replace(self, items=others, skipped=()) if others else None

    def split(self, held_out: float) -> tuple[Dataset, Dataset | None]:
        """Returns the dataset that is trained, and the one that is kept from training to be measured.

        `held_out` is how many different pictures of each folder are kept, as a whole number. Below 1 it is the share of
        them that is kept, but at least one if there are two or more. Which ones are kept depends on their content
        alone, and identical pictures stay together. Raises ValueError if a folder would have nothing left to train on,
        or if nothing would be kept."""
        if not held_out:
            return self, None
        digests: dict[Path, set[str]] = {}
        for item in self.items:
            digests.setdefault(item.path.parent, set()).add(item.digest)
        chosen = {digest for those in digests.values() for digest in _choose(those, held_out)}
        names = {path.parent: name.rpartition("/")[0] or self.folder for path, name in self.names().items()}
        empty = [f"'{names[place]}' (different images: {len(those)})" for place, those in digests.items()
                 if those <= chosen]
        if empty:
            raise ValueError(f"held_out {held_out:g} leaves nothing to train on in {', '.join(empty)}. Lower held_out, "
                             "or add images there.")
        if not chosen:
            raise ValueError(f"held_out {held_out:g} keeps no image of {len(self.items)} in '{self.folder}': "
                             "no folder has two different ones. Set held_out to 0, or add images.")
        train, kept = (tuple(i for i in self.items if (i.digest in chosen) == held) for held in (False, True))
        return replace(self, items=train), replace(self, items=kept, skipped=())


def check_editable(items: Iterable[Item]) -> None:
    """Raises ValueError if the caption of one of the items was encoded already."""
    if encoded := [item.path.name for item in items if item.text is not None]:
        raise ValueError(f"What is encoded already cannot be edited, {counted(len(encoded), 'caption')}: "
                         f"{name_some(encoded)}. Wire captions into LoRA Dataset from Images in place of conditioning.")


def check_writable(items: Iterable[Item]) -> None:
    """Raises ValueError if the caption of one of the items is read from something else than a text file, so that what
    is written to one would not be read."""
    if others := [i.path.name for i in items if not i.caption_file or i.caption_file.suffix.lower() == ".json"]:
        raise ValueError("What is read from a table or from JSON cannot be written to text files, "
                         f"{counted(len(others), 'caption')}: {name_some(others)}. Turn write_files off, and change it "
                         "where it is.")


def _rare(item: Item) -> list[tuple[str, str | float]]:
    """Returns the facts about an item that few images have. Jobs are found by their dataset's fingerprint, so it must
    not change for the images that have none of them."""
    rate = item.rules.caption_dropout_rate if item.rules else None
    rules = item.rules and replace(item.rules, caption_dropout_rate=0.0 if rate is None else rate)
    facts = {"mask": item.mask_digest, "weight": item.weight, "rules": rules, "augment": item.augment,
             "regularization": item.regularization, "text": item.text and item.text.name}
    usual = {"mask": "", "weight": 1, "rules": None, "augment": Augment(), "regularization": False, "text": None}
    return [(name, fact if isinstance(fact, (str, float)) else repr(fact)) for name, fact in facts.items()
            if fact != usual[name]]


def _choose(digests: set[str], held_out: float) -> list[str]:
    """Returns the smallest digests, which are as good as drawn at random and the same in every run."""
    count = int(held_out)
    if held_out < 1:
        count = max(math.floor(held_out * len(digests) + 0.5), min(1, len(digests) - 1))
    return sorted(digests)[:count]


def _home(folder: Path, paths: list[Path]) -> Path | None:
    if all(path.is_relative_to(folder) for path in paths):
        return folder
    try:
        return Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:  # the paths are on two drives, or some are absolute and some not
        return None
