"""An image as training takes it.

Shapes: C latent channels, H W latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..model.host import Text


@dataclass(frozen=True, slots=True)
class Example:
    """An image as the transformer sees it."""

    latents: Tensor
    """(C, H, W), fp32, on the CPU."""
    texts: Sequence[Text]
    """Its caption, in every order that is trained."""
    num_repeats: int = 1
    weight: float = 1.0
    """Factor on its loss; below 0 it is unlearned."""
    mask: Tensor | None = None
    """What counts of it: (H, W) in 0…1."""
    others: Sequence[tuple[Tensor, Tensor | None]] = ()
    """Its latents and masks in other views, of the same shapes."""
    caption_dropout: float = 0.0
    """How often its caption is left out."""
    blank: Text | None = None
    """What takes the caption's place when it is dropped."""
    preserved: Text | None = None
    """To this the adapted model shall answer as the base model does."""
