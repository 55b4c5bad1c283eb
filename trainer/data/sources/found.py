"""Defines what a source gives: image files that are not opened yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..captions.rules import CaptionRules
from ..pictures.augment import Augment
from ..pictures.buckets import Buckets


@dataclass(frozen=True, slots=True)
class Found:
    """Describes an image file that is not opened yet."""

    path: Path
    num_repeats: int
    weight: float
    """The factor on its loss."""
    masks: tuple[Path, ...]
    """The mask pictures that belong to it, the one to use first."""
    caption: str | None = None
    """The caption from a table or a configuration. None: it lies beside the image."""
    caption_file: Path | None = None
    """The file with its caption if `caption` is None: the one beside it, or the one to write if there is none."""
    rules: CaptionRules | None = None
    """What a configuration wants done with its caption. None: what the recipe says."""
    augment: Augment | None = None
    """What is done with the picture before it is trained. None: what the loader says."""
    buckets: tuple[Buckets, ...] = ()
    """The sizes to choose from, one for each resolution. Empty: what the loader says."""
    masked: bool | None = None
    """Whether its mask is used. None: what the loader says."""
    regularization: bool = False
    """Whether it is an image of the class, learned beside the others so that the class stays as it is."""
