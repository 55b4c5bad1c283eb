"""What a source gives: image files that are not opened yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..captions.rules import CaptionRules
from ..pictures.augment import Augment
from ..pictures.buckets import Buckets


@dataclass(frozen=True, slots=True)
class Found:
    """An image file, not opened yet."""

    path: Path
    num_repeats: int
    weight: float
    """Factor on its loss."""
    masks: tuple[Path, ...]
    """Mask pictures beside it, the one to use first."""
    caption: str | None = None
    """From a table or a configuration. None: it lies beside the image."""
    caption_extension: str = ""
    """Of the file beside it; empty: .txt, or else .caption."""
    rules: CaptionRules | None = None
    """What a configuration wants done with its caption. None: what the recipe says."""
    augment: Augment | None = None
    """None: what the loader says; so with the next two."""
    buckets: tuple[Buckets, ...] = ()
    masked: bool | None = None
    regularization: bool = False
    """An image of the class, to be learned beside the others so that it stays as it is."""
