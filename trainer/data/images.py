"""Pictures from disk: opened, checked, turned upright, put on white, cut to size. Decoding is pillow's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

if TYPE_CHECKING:
    from .dataset import Dataset

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_PIXELS = 100_000_000
"""Larger pictures are refused: decoded, they would fill the memory (100 megapixels are 300 MB)."""


def measure(path: Path) -> tuple[int, int]:
    """Decodes a picture wholly and gives its upright (width, height).

    Raises ValueError that says what is wrong with it and what to do."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{path.name} is {image.width}×{image.height} pixels, more than {MAX_PIXELS // 10**6} "
                                 "megapixels. Make it smaller: training scales it down anyway.")
            image.load()
            return ImageOps.exif_transpose(image).size
    except Image.DecompressionBombError as err:
        raise ValueError(f"{path.name} is too large to open safely ({err}). Make it smaller.") from err
    except (OSError, SyntaxError, ValueError) as err:
        if isinstance(err, ValueError) and str(err).startswith(path.name):
            raise
        raise ValueError(f"{path.name} cannot be read as a picture ({err}). Replace it or save it anew.") from err


def load(path: Path, bucket: tuple[int, int]) -> Tensor:
    """A picture (h, w, 3) in 0…1, scaled to cover `bucket` (width, height) and cut to it around the centre.

    Transparent parts become white."""
    fitted = ImageOps.fit(on_page(upright(path), "white").convert("RGB"), bucket, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 255)


def upright(path: Path) -> Image.Image:
    """A picture turned as its EXIF data says."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):  # 16-bit greys: pillow's `convert` clips them, which makes most of them white
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    return image


def on_page(image: Image.Image, color: str) -> Image.Image:
    """A picture with `color` where it is transparent."""
    if not image.has_transparency_data:
        return image
    page = Image.new("RGBA", image.size, color)
    page.alpha_composite(image.convert("RGBA"))
    return page


def contact_sheet(dataset: Dataset, edge: int = 128, most: int = 48) -> Tensor:
    """The first images of a dataset side by side, as they will be cut: (h, w, 3) in 0…1."""
    shown = dataset.items[:most]
    columns = min(len(shown), max(4, math.ceil(math.sqrt(len(shown) * 1.5))))
    sheet = Image.new("RGB", (columns * edge, -(-len(shown) // columns) * edge), "white")
    for place, item in enumerate(shown):
        picture = Image.fromarray((load(item.path, item.bucket) * 255).round().byte().numpy())
        sheet.paste(ImageOps.pad(picture, (edge - 4, edge - 4), color="white"),
                    (place % columns * edge + 2, place // columns * edge + 2))
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)
