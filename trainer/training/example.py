"""Holds an image as training takes it.

Shapes: C latent channels, H W latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..model.host import Text


@dataclass(frozen=True, slots=True)
class Example:
    """Holds an image and its captions as the transformer sees them."""

    latents: Tensor
    """The encoded image: (C, H, W), fp32, on the CPU."""
    texts: Sequence[Text]
    """The caption in every form that is trained, encoded."""
    num_repeats: int = 1
    weight: float = 1.0
    """The factor on the image's loss. Below 0 the image is unlearned."""
    mask: Tensor | None = None
    """How much each place of the image counts: (H, W) in 0…1. None: all of it counts."""
    others: Sequence[tuple[Tensor, Tensor | None]] = ()
    """The image's latents and masks in other views, in the same shapes."""
    caption_dropout: float = 0.0
    """How often the caption is left out, in 0…1."""
    blank: Text | None = None
    """The text that takes the caption's place when it is left out."""
    preserved: Text | None = None
    """A text to which the adapted model must answer as the base model does; None if there is none."""
