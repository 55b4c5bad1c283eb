"""Finds and checks the images of a dataset, whatever it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from ..disk.text import check_text, counted
from .captions import files as captions
from .item import Dataset, Item, OnMissingCaption
from .naming import NAMED, name_some
from .pictures import images
from .pictures.augment import Augment
from .pictures.buckets import for_resolution
from .pictures.images import Facts
from .pictures.index import Index, Question
from .pictures.masks import Facts as MaskFacts
from .pictures.masks import Masks
from .sources.choose import find_any
from .sources.found import Found

MOST_REPEATS = 10_000
OnBadImage = Literal["refuse", "skip"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """Says how pictures are brought to size if their source does not say it."""

    resolution: int
    more_resolutions: tuple[int, ...] = ()
    """Other resolutions that each image is trained at as well."""
    upscale: bool = False
    """Whether images may be enlarged."""
    augment: Augment = Augment()

    def buckets(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Returns the (width, height) that a picture of `size` is trained at, for each resolution."""
        return [self._bucket(size, r) for r in (self.resolution, *self.more_resolutions)]

    def _bucket(self, size: tuple[int, int], resolution: int) -> tuple[int, int]:
        usual = for_resolution(resolution, upscale=True).choose(size)
        small = size[0] < usual[0] or size[1] < usual[1]
        return for_resolution(resolution, upscale=False).choose(size) if small and not self.upscale else usual


def scan(source: Path, *, cut: Cut, trigger_word: str, scratch: Path, on_bad_image: OnBadImage = "refuse",
         on_missing_caption: OnMissingCaption = "refuse", masks: Masks = "ignore",
         tell: Callable[[int, int], None] = lambda done, total: None) -> Dataset:
    """Finds and checks every image of a folder, an archive or another trainer's dataset configuration.

    `scratch`: a folder for what archives hold and for what is known of pictures from an earlier time. `tell` is called
    with the number of pictures that are checked and the number of all, and then so for masks. Raises ValueError that
    names the files and says what to do: if nothing is there, there are no images, or an image, a caption, a mask or a
    weight cannot be used. Missing captions are no error here: LoRA Captioner may write them."""
    check_text("trigger_word", trigger_word)
    found, passed_over = find_any(source, scratch)
    unique = list(dict.fromkeys(entry.path for entry in found))
    asked = [Question(path, partial(images.examine, path)) for path in unique]
    known = dict(zip(unique, Index(scratch / "scans", Facts).examine(asked, tell), strict=True))
    read = [_items(entry, known[entry.path], cut, trigger_word, masks) for entry in found]
    items, bad = [], []
    for entry in _with_masks(read, scratch, tell):
        if isinstance(entry, ValueError):
            bad.append(str(entry))
        else:
            items += entry
    bad = list(dict.fromkeys(bad))  # an image may be in several subsets
    made = source.is_relative_to(scratch)  # by LoRA Dataset from Images
    where = "from other nodes" if made else f"in '{source}'"
    if bad and on_bad_image == "refuse":
        then = "Mend them in the nodes that give them." if made else "Mend them, or set bad_images to 'skip'."
        raise ValueError(f"{len(bad)} of {counted(len(found), 'image')} {where} cannot be used:\n"
                         + "\n".join([*bad[:NAMED], then]))
    if not items:
        raise ValueError(f"{counted(len(found), 'image')} {where}, and none can be used:\n" + "\n".join(bad[:NAMED]))
    if masks == "ignore" and (pictures := sorted({mask.name for entry in found for mask in entry.masks
                                                  if entry.masked is None})):
        count = counted(len(pictures), "mask picture")
        passed_over.append(f"{count}, because masks is 'ignore': {name_some(pictures)}")
    own = [b.resolution[0] for entry in found for b in entry.buckets]
    lacking = {item.path for item in items if not item.has_caption}
    example = next((entry for entry in found if entry.path in lacking), found[0])
    return Dataset(source, own[0] if own else cut.resolution, trigger_word, tuple(items), (*bad, *passed_over),
                   on_missing_caption, "Wire in a caption for each image" if made else _how_to_caption(example))


def _items(found: Found, facts: Facts | ValueError, cut: Cut, trigger_word: str,
           masks: Masks) -> list[Item] | ValueError:
    """Returns the items of an image, one for each different size that it is trained at, or why it is unusable. Their
    masks are not looked at."""
    try:
        return _items_of(found, facts, cut, trigger_word, masks)
    except ValueError as err:
        return err


def _items_of(found: Found, facts: Facts | ValueError, cut: Cut, trigger_word: str, masks: Masks) -> list[Item]:
    if isinstance(facts, ValueError):
        raise facts
    if found.num_repeats > MOST_REPEATS:
        raise ValueError(f"{found.path.parent.name}: {found.path.name} comes {found.num_repeats} times an epoch, and "
                         f"{MOST_REPEATS} are the most. Lower the number of repeats.")
    text = captions.read(found.caption_file) if found.caption is None and found.caption_file else found.caption
    check_text(f"The caption of {found.path.name}", text or "")
    caption = (text or "") if found.rules else captions.one_line(text or "")
    masked = found.masked if found.masked is not None else masks == "use"
    items = []
    buckets = [b.choose(facts.size) for b in found.buckets] or cut.buckets(facts.size)
    for bucket in dict.fromkeys(buckets):
        item = Item(found.path, caption or trigger_word, found.num_repeats, facts.size, bucket, facts.digest,
                    has_caption=bool(caption), weight=found.weight, rules=found.rules,
                    augment=found.augment or cut.augment, regularization=found.regularization,
                    perceptual_hash=facts.perceptual_hash, sharpness=facts.sharpness, caption_file=found.caption_file)
        items.append(item.with_mask(found.masks, facts.transparent) if masked else item)
    return items


def _with_masks(read: Sequence[list[Item] | ValueError], scratch: Path,
                tell: Callable[[int, int], None]) -> Iterator[list[Item] | ValueError]:
    """Yields the items of each image with what is known of their masks, or why the image is unusable."""
    asked = [item.ask_mask() for items in read if not isinstance(items, ValueError) for item in items if item.mask]
    known = iter(Index(scratch / "scans" / "masks", MaskFacts).examine(asked, tell) if asked else ())
    for items in read:
        if isinstance(items, ValueError):
            yield items
            continue
        facts = [next(known) if item.mask else MaskFacts("") for item in items]
        yield next((fact for fact in facts if isinstance(fact, ValueError)), None) or [
            replace(item, mask_digest=fact.digest) for item, fact in zip(items, facts, strict=True)
            if isinstance(fact, MaskFacts)]


def _how_to_caption(found: Found) -> str:
    if not found.caption_file:
        return "Write them into the metadata_file"
    return (f"Write one {found.caption_file.suffix} file for each image ({name_some([found.path.name])} → "
            f"{name_some([found.caption_file.name])})")
