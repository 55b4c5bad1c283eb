"""Masks: which part of an image counts in its loss. White or opaque counts, black or transparent does not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from . import images
from .augment import View, views

if TYPE_CHECKING:
    from ..item import Item

Masks = Literal["ignore", "use"]
SUFFIXES = ("-masklabel", "_mask")
"""What a mask picture's name adds to its image's: OneTrainer's way, and the widespread one. The first one found counts.
"""
FOLDERS = ("mask", "masks")
"""Folders beside images whose pictures are masks of the images with the same names, whatever their formats."""


def beside(pictures: Sequence[Path]) -> dict[Path, tuple[Path, ...]]:
    """Each picture of one folder with the mask pictures that lie beside it, and then those in its mask folders."""
    pngs = {p.stem: p for p in pictures if p.suffix.lower() == ".png"}
    inside = [{p.stem: p for p in _pictures(place)} for place in _folders({p.parent for p in pictures})]
    return {p: (*(pngs[p.stem + s] for s in SUFFIXES if p.stem + s in pngs),
                *(masks[p.stem] for masks in inside if p.stem in masks)) for p in pictures}


def _folders(places: set[Path]) -> Iterator[Path]:
    for place in places:
        yield from sorted(sub for sub in place.iterdir() if sub.name.lower() in FOLDERS and sub.is_dir())


def _pictures(folder: Path) -> list[Path]:
    """PNG last, so that it is taken where there are several of one name: it is the one without losses."""
    found = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in images.EXTENSIONS and p.is_file()]
    return sorted(found, key=lambda p: p.suffix.lower() == ".png")


def with_mask(item: Item, pictures: Sequence[Path], transparent: bool | None = None) -> Item:
    """An image with the first of its mask pictures, else with its alpha channel; without a mask if it has neither.

    `transparent`: whether the alpha channel says something, if that is known. Raises ValueError if the mask cannot be
    read, differs from its image in size, or leaves out all that is trained."""
    if not pictures and transparent is None:
        transparent = images.examine(item.path).transparent
    if not pictures and not transparent:
        return item
    mask = pictures[0] if pictures else item.path
    data = images.read(mask)
    grey = _grey(mask, data, alpha=mask == item.path)
    if grey.size != item.size:
        raise ValueError(f"{mask.name} is {grey.size[0]}×{grey.size[1]} pixels and its image {item.path.name} "
                         f"{item.size[0]}×{item.size[1]}. Save the mask at the size of its image.")
    if not any(_cut(grey, item, view).getbbox() for view in views(item.augment, item.digest)):
        left_out, counts = ("transparent", "opaque") if mask == item.path else ("black", "white")
        raise ValueError(f"{mask.name} is {left_out} in all that is trained of {item.path.name} ({item.bucket[0]}×"
                         f"{item.bucket[1]} around the centre), so nothing counts. Make some of it {counts}, or set "
                         "masks to 'ignore'.")
    return replace(item, mask=mask, mask_digest=hashlib.sha256(data).hexdigest())


def load(item: Item, view: View = View()) -> Tensor:  # noqa: B008 - it is immutable
    """The mask (h, w) of an image that has one, in 0…1, cut exactly as `images.load` cuts the image."""
    assert item.mask
    grey = _grey(item.mask, images.read(item.mask), alpha=item.mask == item.path)
    return torch.from_numpy(np.asarray(_cut(grey, item, view), dtype=np.float32) / 255)


def to_latents(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (h, w) at the size (H, W) of latents: each is the mean of the pixels it stands for."""
    return torch.nn.functional.interpolate(mask[None, None], size=size, mode="area")[0, 0]


def _grey(path: Path, data: bytes, *, alpha: bool) -> Image.Image:
    """How much each pixel counts: opacity, or brightness. White strokes on a transparent page count as on black."""
    with images.naming(path):
        picture = images.upright(path, data)
        return picture.convert("RGBA").getchannel("A") if alpha else images.on_page(picture, "black").convert("L")


def _cut(grey: Image.Image, item: Item, view: View) -> Image.Image:
    """As `images.load` cuts, but bilinear: the ringing of sharper filters would darken what counts along the edges."""
    fitted = grey.resize(item.bucket, Image.Resampling.BILINEAR, box=images.box(grey.size, item.bucket, view))
    return ImageOps.mirror(fitted) if view.flip else fitted
