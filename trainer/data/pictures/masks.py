"""Finds and reads masks, which say what part of an image counts in its loss.

White or opaque counts, black or transparent does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL import Image, ImageOps
from torch import Tensor

from . import images
from .augment import View

Masks = Literal["ignore", "use"]
SUFFIXES = ("-masklabel", "_mask")
"""What a mask picture's name adds to its image's name, first as in OneTrainer, then as is widespread. The first one
found counts."""
FOLDERS = ("mask", "masks")
"""The names of folders beside images. Their pictures are masks of the images with the same names, in any format."""


def beside(pictures: Sequence[Path]) -> dict[Path, tuple[Path, ...]]:
    """Returns the mask pictures of each picture of one folder: first those that lie beside it, then those in its mask
    folders."""
    pngs = {p.stem: p for p in pictures if p.suffix.lower() == ".png"}
    inside = [{p.stem: p for p in _pictures(place)} for place in _folders({p.parent for p in pictures})]
    return {p: (*(pngs[p.stem + s] for s in SUFFIXES if p.stem + s in pngs),
                *(masks[p.stem] for masks in inside if p.stem in masks)) for p in pictures}


def _folders(places: set[Path]) -> Iterator[Path]:
    for place in places:
        yield from sorted(sub for sub in place.iterdir() if sub.name.lower() in FOLDERS and sub.is_dir())


def _pictures(folder: Path) -> list[Path]:
    """Returns the pictures of a folder, PNG last. If several have one name the last is used, and PNG has no losses."""
    found = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in images.EXTENSIONS and p.is_file()]
    return sorted(found, key=lambda p: p.suffix.lower() == ".png")


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
