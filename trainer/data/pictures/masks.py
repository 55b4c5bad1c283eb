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
from .listing import bases, entries, list_pictures

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


def beside(place: Path, pictures: Sequence[Path]) -> tuple[Found, list[str]]:
    """Returns the mask pictures of each picture of a folder: first those that lie beside it, then those in its mask
    folders. Also returns sentences about what is left out of these folders. Raises ValueError if a mask folder cannot
    be read, or if several masks could be meant."""
    found, said = among(pictures), []
    for folder in _folders(place):
        own, left_out = inside(folder, pictures)
        found = {p: (*masks, *own[p]) for p, masks in found.items()}
        said += left_out
    return found, said


def among(pictures: Sequence[Path]) -> Found:
    """Returns the masks of each of the pictures that are among them. Raises ValueError if several could be meant."""
    found = [_named_after(pictures, pictures, suffix) for suffix in SUFFIXES]
    return {p: tuple(mask for masks in found for mask in masks[p]) for p in pictures}


def inside(folder: Path, pictures: Sequence[Path]) -> tuple[Found, list[str]]:
    """Returns the picture in a mask folder that has the name of each picture, if there is one, and sentences about what
    is left out. Of several formats it is PNG. Raises ValueError as `beside` does."""
    masks, said = list_pictures(folder)
    found = _named_after(masks, pictures, "")
    unused = sorted(mask.name for mask in {*masks} - {mask for own in found.values() for mask in own})
    return {p: own[:1] for p, own in found.items()}, said + sentences(
        (unused, "mask", f"in '{folder.name}' not used, because no image has that name", ""))


def _named_after(masks: Sequence[Path], pictures: Sequence[Path], suffix: str) -> Found:
    """Returns all masks that have a name of each picture and a suffix: the name's own writing first, and of each
    writing the nearest to the mask's whole name, PNG first, because it has no losses."""
    named: dict[str, list[Path]] = {}
    parts = [(i, mask.suffix.lower() != ".png", base, mask)
             for mask in masks for i, base in enumerate(bases(mask.name))]
    for _, _, base, mask in sorted(parts, key=lambda part: part[:2]):
        named.setdefault(base, []).append(mask)
    wanted = {p: [base + suffix for base in bases(p.name)] for p in pictures}
    names = Names(named, {name for own in wanted.values() for name in own})
    return {p: tuple(dict.fromkeys(mask for name in _writings(names, own) for mask in named[name]))
            for p, own in wanted.items()}


def _writings(names: Names, wanted: Sequence[str]) -> list[str]:
    """Returns all that are called as one of `wanted`, the one that `Names` finds first."""
    found = names.find(*wanted)
    return [found, *(name for name in wanted for name in names.alike(name))] if found else []


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
