"""Makes other views of a picture (cropped, mirrored, in other colours), each with latents of its own to be cached."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageEnhance

Crop = Literal["centre", "top", "random"]
RANDOM_CROPS = 4
"""How many crops of a picture are cached. One is around the centre."""
MOST_CHANGE = 0.05
"""The largest change of brightness, contrast and saturation, as a share: as much as sd-scripts' color_aug changes gamma
(0.95 … 1.05)."""
MOST_HUE = 8 / 180
"""The largest change of hue, as a share of the colour circle (16 degrees), as in sd-scripts' color_aug."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Augment:
    """Says what is done with a picture before it is trained. By default it is only cut around the centre."""

    crop: Crop = "centre"
    flip: bool = False
    """Whether left and right are swapped in half of the views."""
    color: bool = False
    """Whether half of the views have another brightness, contrast, saturation and hue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """Describes one way to cut and show a picture."""

    x: float = 0.5
    """Where the part that is cut out lies from left (0) to right (1)."""
    y: float = 0.5
    """Where the part that is cut out lies from top (0) to bottom (1)."""
    flip: bool = False
    color: int = 0
    """The number of the change of colours. 0 is none."""


def views(augment: Augment, digest: str) -> list[View]:
    """Returns all views of a picture that are trained, at most 16, the plainest first. The same `digest` has the same
    views."""
    flips = (False, True) if augment.flip else (False,)
    plain = [View(x=x, y=y, flip=flip) for flip, (x, y) in itertools.product(flips, _crops(augment.crop, digest))]
    colored = [View(x=v.x, y=v.y, flip=v.flip, color=number) for number, v in enumerate(plain, 1)]
    return plain + colored if augment.color else plain


def _crops(crop: Crop, digest: str) -> list[tuple[float, float]]:
    if crop == "random":
        draw = random.Random(f"crops {digest}")  # its numbers are the same in every version of Python
        return [(0.5, 0.5), *((draw.random(), draw.random()) for _ in range(RANDOM_CROPS - 1))]
    return [(0.5, 0.0 if crop == "top" else 0.5)]


def recolor(image: Image.Image, digest: str, color: int) -> Image.Image:
    """Returns an RGB picture with a slight change of brightness, contrast, saturation and hue. `digest` and the number
    `color` decide which change."""
    draw = random.Random(f"color {color} {digest}")
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(1 + draw.uniform(-MOST_CHANGE, MOST_CHANGE))
    hue, saturation, value = image.convert("HSV").split()
    shift = round(draw.uniform(-MOST_HUE, MOST_HUE) * 256)  # pillow's hue is a byte
    turned = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")
