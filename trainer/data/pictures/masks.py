"""Finds and reads masks, which say what part of an image counts in its loss.

White or opaque counts, black or transparent does not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..naming import Names, sentences
from . import images
from .augment import View
from .listing import entries, list_pictures

Masks = Literal["ignore", "use"]
Found = dict[Path, tuple[Path, ...]]
"""The masks of each picture, the one to use first."""
SUFFIXES = ("-masklabel", "_mask")
"""What a mask picture's name adds to its image's name, first as in OneTrainer, then as is widespread. The first one
found counts, in any format."""
FOLDERS = ("mask", "masks")
"""The names of folders beside images. Their pictures are masks of the images with the same names, in any format."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Holds what is known of a mask that can be used."""

    digest: str
    """SHA-256 of the file."""


def beside(pictures: Sequence[Path]) -> tuple[Found, list[str]]:
    """Returns the mask pictures of each picture of one folder: first those that lie beside it, then those in its mask
    folders. Also returns sentences about what is left out of these folders. Raises ValueError if a mask folder cannot
    be read, or if several masks could be meant."""
    found, said = [_by_stem(pictures, pictures, suffix) for suffix in SUFFIXES], []
    for folder in (folder for place in {p.parent for p in pictures} for folder in _folders(place)):
        own, left_out = inside(folder, pictures)
        found.append(own)
        said += left_out
    return {p: tuple(mask for masks in found for mask in masks[p]) for p in pictures}, said


def inside(folder: Path, pictures: Sequence[Path]) -> tuple[Found, list[str]]:
    """Returns the picture in a mask folder that has the name of each picture, if there is one, and sentences about what
    is left out. Of several formats it is PNG. Raises ValueError as `beside` does."""
    masks, said = list_pictures(folder)
    found = _by_stem(masks, pictures, "")
    unused = sorted(mask.name for mask in {*masks} - {mask for own in found.values() for mask in own})
    return {p: own[:1] for p, own in found.items()}, said + sentences(
        (unused, "mask", f"in '{folder.name}' not used, because no image has that name", ""))


def _by_stem(masks: Sequence[Path], pictures: Sequence[Path], suffix: str) -> Found:
    """Returns all masks that have the name of each picture and a suffix: the name's own writing first, and of each
    writing PNG first, because it has no losses."""
    stems: dict[str, list[Path]] = {}
    for mask in sorted(masks, key=lambda p: p.suffix.lower() != ".png"):
        stems.setdefault(mask.stem, []).append(mask)
    names = Names(stems, {p.stem + suffix for p in pictures})
    return {p: tuple(mask for name in names.alike(p.stem + suffix) for mask in stems[name])
            if names.find(p.stem + suffix) else () for p in pictures}


def _folders(place: Path) -> list[Path]:
    return [place / entry.name for entry in entries(place)
            if entry.name.lower() in FOLDERS and os.path.isdir(entry.path)]


def to_latents(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns a mask (h, w) at the size (H, W) of latents. Each value is the mean of the pixels it stands for."""
    return torch.nn.functional.interpolate(mask[None, None], size=size, mode="area")[0, 0]


def grey(mask: Path, data: bytes, *, alpha: bool) -> Image.Image:
    """Returns how much each pixel of a mask's file counts: its brightness, or with `alpha` its opacity. White strokes
    on a transparent page count as on a black one. Raises ValueError that names the file if it cannot be read."""
    with images.naming(mask):
        picture = images.upright(mask, data)
        return picture.convert("RGBA").getchannel("A") if alpha else images.on_page(picture, "black").convert("L")


def cut(grey: Image.Image, bucket: tuple[int, int], view: View) -> Image.Image:
    """Returns a mask cut as `images.load` cuts an image, but bilinear: the ringing of sharper filters would darken what
    counts along the edges."""
    fitted = grey.resize(bucket, Image.Resampling.BILINEAR, box=images.box(grey.size, bucket, view))
    return ImageOps.mirror(fitted) if view.flip else fitted
