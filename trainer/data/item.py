"""Images and captions, found, checked and ready to be encoded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from .captions import files as captions
from .captions.rules import CaptionRules
from .pictures.augment import Augment
from .pictures.buckets import for_resolution
from .pictures.images import Facts
from .pictures.index import Index
from .pictures.masks import Masks, with_mask
from .sources.choose import find_any
from .sources.folder import NAMED, Found, name_some

MOST_REPEATS = 10_000
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
    rules: CaptionRules | None = None
    """What is done with its caption each time. None: what the recipe says."""
    augment: Augment = Augment()
    regularization: bool = False
    """An image of the class, learned beside the others so that it stays as it is."""
    latents: Path | None = None
    """A file with its latents, encoded by a person; it is then its picture as well."""
    text: Path | None = None
    """A file with its caption, encoded by a person."""
    perceptual_hash: int | None = None
    """64 bits that are alike for pictures that look alike. None: not a picture."""
    sharpness: float | None = None
    """Low for a blurred picture; see `images.sharpness`."""

    @property
    def own_caption(self) -> str:
        """Its caption, empty where the trigger word stands in."""
        return self.caption if self.has_caption else ""


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

    def without_regularization(self) -> tuple[Dataset, Dataset | None]:
        """What is to be learned, and the images of the class. Raises ValueError if there is nothing to learn."""
        learned, others = (tuple(i for i in self.items if i.regularization == wanted) for wanted in (False, True))
        if not learned:
            raise ValueError(f"All {len(others)} images in '{self.folder}' are regularization images (is_reg). Add the "
                             "images of what the LoRA shall learn.")
        return replace(self, items=learned), replace(self, items=others, skipped=()) if others else None

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


def check_editable(items: Iterable[Item]) -> None:
    """Raises ValueError if one of their captions was encoded already."""
    if encoded := [item.path.name for item in items if item.text is not None]:
        raise ValueError(f"{len(encoded)} captions are encoded already and cannot be edited: {name_some(encoded)}. "
                         "Wire captions into LoRA Dataset from Images in place of conditioning.")


def _rare(item: Item) -> list[tuple[str, str | float]]:
    """What few images have. Jobs are found by their dataset's fingerprint, so it must not change for the others."""
    facts = {"mask": item.mask_digest, "weight": item.weight, "rules": item.rules, "augment": item.augment,
             "regularization": item.regularization, "text": item.text and item.text.name}
    usual = {"mask": "", "weight": 1, "rules": None, "augment": Augment(), "regularization": False, "text": None}
    return [(name, fact if isinstance(fact, (str, float)) else repr(fact)) for name, fact in facts.items()
            if fact != usual[name]]


def _choose(digests: set[str], held_out: float) -> list[str]:
    """Those with the smallest digests, which are as good as drawn and the same in every run."""
    count = int(held_out)
    if held_out < 1:
        count = max(math.floor(held_out * len(digests) + 0.5), min(1, len(digests) - 1))
    return sorted(digests)[:count]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """How pictures are brought to size, where their source does not say."""

    resolution: int
    more_resolutions: tuple[int, ...] = ()
    """Each image is trained at these as well."""
    upscale: bool = False
    """Whether images may be enlarged."""
    augment: Augment = Augment()

    def buckets(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """The (width, height) that a picture of `size` is trained at, for each resolution."""
        return [self._bucket(size, r) for r in (self.resolution, *self.more_resolutions)]

    def _bucket(self, size: tuple[int, int], resolution: int) -> tuple[int, int]:
        usual = for_resolution(resolution, upscale=True).choose(size)
        small = size[0] < usual[0] or size[1] < usual[1]
        return for_resolution(resolution, upscale=False).choose(size) if small and not self.upscale else usual


def scan(source: Path, *, cut: Cut, trigger_word: str, scratch: Path, on_bad_image: OnBadImage = "refuse",
         on_missing_caption: OnMissingCaption = "refuse", masks: Masks = "ignore",
         tell: Callable[[int, int], None] = lambda done, total: None) -> Dataset:
    """Finds and checks every image of a folder, an archive or another trainer's dataset configuration.

    `scratch`: a folder for what archives hold and for what is known of pictures from an earlier time. `tell` hears how
    many of how many pictures are checked. Raises ValueError that names the files and says what to do: nothing there, no
    images, unreadable images, captions that are missing or no text, unusable masks or weights."""
    found, passed_over = find_any(source, scratch)
    unique = list(dict.fromkeys(entry.path for entry in found))
    known = dict(zip(unique, Index(scratch / "scans").examine(unique, tell), strict=True))
    items, bad = [], []
    for entry in found:
        try:
            items += _items(entry, known[entry.path], cut, trigger_word, masks)
        except ValueError as err:
            bad.append(str(err))
    bad = list(dict.fromkeys(bad))  # an image may be in several subsets
    if bad and on_bad_image == "refuse":
        raise ValueError(f"{len(bad)} of {len(found)} images in '{source}' cannot be used:\n" + "\n".join(bad[:NAMED])
                         + "\nMend them, or set bad_images to 'skip'.")
    if not items:
        raise ValueError(f"None of the {len(found)} images in '{source}' can be used:\n" + "\n".join(bad[:NAMED]))
    if uncaptioned := list(dict.fromkeys(i.path.name for i in items if not i.has_caption)):
        _check_uncaptioned(source, uncaptioned, len(unique), trigger_word, on_missing_caption)
    if masks == "ignore" and (pictures := sorted({mask.name for entry in found for mask in entry.masks
                                                  if entry.masked is None})):
        passed_over.append(f"{len(pictures)} mask pictures, because masks is 'ignore': {name_some(pictures)}")
    own = [b.resolution[0] for entry in found for b in entry.buckets]
    return Dataset(source, own[0] if own else cut.resolution, trigger_word, tuple(items), (*bad, *passed_over))


def _items(found: Found, facts: Facts | ValueError, cut: Cut, trigger_word: str, masks: Masks) -> list[Item]:
    """An image, once for each resolution that it has a size of its own in. Raises ValueError if it is unusable."""
    if isinstance(facts, ValueError):
        raise facts
    if found.num_repeats > MOST_REPEATS:
        raise ValueError(f"{found.path.parent.name}: {found.path.name} comes {found.num_repeats} times an epoch, and "
                         f"{MOST_REPEATS} are the most. Lower the number of repeats.")
    text = captions.read(found.path, found.caption_extension) if found.caption is None else found.caption
    caption = (text or "") if found.rules else captions.one_line(text or "")
    masked = found.masked if found.masked is not None else masks == "use"
    items = []
    buckets = [b.choose(facts.size) for b in found.buckets] or cut.buckets(facts.size)
    for bucket in dict.fromkeys(buckets):
        item = Item(found.path, caption or trigger_word, found.num_repeats, facts.size, bucket, facts.digest,
                    has_caption=bool(caption), weight=found.weight, rules=found.rules,
                    augment=found.augment or cut.augment, regularization=found.regularization,
                    perceptual_hash=facts.perceptual_hash, sharpness=facts.sharpness)
        items.append(with_mask(item, found.masks, facts.transparent) if masked else item)
    return items


def _check_uncaptioned(folder: Path, names: list[str], total: int, trigger_word: str, rule: OnMissingCaption) -> None:
    problem = f"{len(names)} of {total} images in '{folder}' have no caption: {name_some(names)}."
    if rule == "refuse":
        raise ValueError(f"{problem} Write one text file for each image (cat.png → cat.txt), or set missing_captions "
                         "to 'use the trigger word'.")
    if not trigger_word:
        raise ValueError(f"{problem} They cannot be trained with the trigger word, because trigger_word is empty.")
