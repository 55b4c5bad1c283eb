"""Masks: which part of an image counts in its loss. White or opaque counts, black or transparent does not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from . import images

if TYPE_CHECKING:
    from .dataset import Item

Masks = Literal["ignore", "use"]
SUFFIXES = ("-masklabel", "_mask")
"""What a mask picture's name adds to its image's: OneTrainer's way, and the widespread one. The first one found counts.
"""


def beside(pictures: Sequence[Path]) -> dict[Path, tuple[Path, ...]]:
    """Each picture of one folder with the mask pictures that lie beside it."""
    pngs = {p.stem: p for p in pictures if p.suffix.lower() == ".png"}
    return {p: tuple(pngs[p.stem + s] for s in SUFFIXES if p.stem + s in pngs) for p in pictures}


def with_mask(item: Item, pictures: Sequence[Path]) -> Item:
    """An image with the first of its mask pictures, else with its alpha channel; without a mask if it has neither.

    Raises ValueError if the mask cannot be read, differs from its image in size, or leaves out all that is trained."""
    if pictures:
        mask, digest = pictures[0], hashlib.sha256(pictures[0].read_bytes()).hexdigest()
        if (size := images.measure(mask)) != item.size:
            raise ValueError(f"{mask.name} is {size[0]}×{size[1]} pixels and its image {item.path.name} "
                             f"{item.size[0]}×{item.size[1]}. Save the mask at the size of its image.")
    elif _is_transparent(item.path):
        mask, digest = item.path, item.digest
    else:
        return item
    masked = replace(item, mask=mask, mask_digest=digest)
    if not load(masked).any():
        left_out, counts = ("transparent", "opaque") if mask == item.path else ("black", "white")
        raise ValueError(f"{mask.name} is {left_out} in all that is trained of {item.path.name} ({item.bucket[0]}×"
                         f"{item.bucket[1]} around the centre), so nothing counts. Make some of it {counts}, or set "
                         "masks to 'ignore'.")
    return masked


def load(item: Item) -> Tensor:
    """The mask (h, w) of an image that has one, in 0…1, cut exactly as `images.load` cuts the image."""
    assert item.mask
    picture = images.upright(item.mask)
    grey = _alpha(picture) if item.mask == item.path else _luminance(picture)
    # Not Lanczos as for images: its ringing would darken what counts along the edges.
    cut = ImageOps.fit(grey, item.bucket, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(cut, dtype=np.float32) / 255)


def to_latents(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (h, w) at the size (H, W) of latents: each is the mean of the pixels it stands for."""
    return torch.nn.functional.interpolate(mask[None, None], size=size, mode="area")[0, 0]


def _is_transparent(path: Path) -> bool:
    with Image.open(path) as image:
        return image.has_transparency_data and bool((np.asarray(_alpha(image)) < 255).any())


def _alpha(image: Image.Image) -> Image.Image:
    return image.convert("RGBA").getchannel("A")


def _luminance(image: Image.Image) -> Image.Image:
    """White strokes on a transparent page count as they would on a black one."""
    return images.on_page(image, "black").convert("L")
